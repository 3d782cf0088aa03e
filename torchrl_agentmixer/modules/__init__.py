"""Plain networks: actors, Policy Modifier, critics, and those of the compared methods."""

from __future__ import annotations

from torchrl_agentmixer.modules.actors import CategoricalActor, GaussianActor, MultiAgentBody
from torchrl_agentmixer.modules.coefficients import IGCCoefficients
from torchrl_agentmixer.modules.critics import (
    CentralCritic,
    DecentralizedCritic,
    JointActionCritic,
    value_module,
)
from torchrl_agentmixer.modules.latent import LatentMixer, LatentUtilities
from torchrl_agentmixer.modules.mixer import AgentMixing, MixerBlock
from torchrl_agentmixer.modules.policy_modifier import ModifierGroup, PolicyModifier
from torchrl_agentmixer.modules.recurrent import MultiAgentGRU
from torchrl_agentmixer.modules.transformer import ActionDecoder, ObservationEncoder

__all__ = [
    "ActionDecoder",
    "AgentMixing",
    "CategoricalActor",
    "CentralCritic",
    "DecentralizedCritic",
    "GaussianActor",
    "IGCCoefficients",
    "JointActionCritic",
    "LatentMixer",
    "LatentUtilities",
    "MixerBlock",
    "ModifierGroup",
    "MultiAgentBody",
    "MultiAgentGRU",
    "ObservationEncoder",
    "PolicyModifier",
    "value_module",
]
