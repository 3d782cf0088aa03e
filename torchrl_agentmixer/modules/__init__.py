"""Networks: actors, Policy Modifier, critics, and networks of MAT and MAVEN."""

from __future__ import annotations

from torchrl_agentmixer.modules.actors import CategoricalActor, GaussianActor
from torchrl_agentmixer.modules.body import MultiAgentBody
from torchrl_agentmixer.modules.central_actor import CentralActor
from torchrl_agentmixer.modules.coefficients import IGCCoefficients, IGCSchedules, PlanSchedules
from torchrl_agentmixer.modules.critics import (
    CentralCritic,
    DecentralizedCritic,
    JointActionCritic,
    value_module,
)
from torchrl_agentmixer.modules.latent import LatentMixer, LatentUtilities
from torchrl_agentmixer.modules.mixer import MixerBlock
from torchrl_agentmixer.modules.modifier_options import (
    ContinuousModifierOptions,
    DiscreteModifierOptions,
    JointScaleOptions,
)
from torchrl_agentmixer.modules.policy_modifier import PolicyModifier
from torchrl_agentmixer.modules.recurrent import MultiAgentGRU
from torchrl_agentmixer.modules.transformer import (
    ActionDecoder,
    ObservationEncoder,
    RecurrentEncoder,
)

__all__ = [
    "ActionDecoder",
    "CategoricalActor",
    "CentralActor",
    "CentralCritic",
    "ContinuousModifierOptions",
    "DecentralizedCritic",
    "DiscreteModifierOptions",
    "GaussianActor",
    "IGCCoefficients",
    "IGCSchedules",
    "JointActionCritic",
    "JointScaleOptions",
    "LatentMixer",
    "LatentUtilities",
    "MixerBlock",
    "MultiAgentBody",
    "MultiAgentGRU",
    "ObservationEncoder",
    "PlanSchedules",
    "PolicyModifier",
    "RecurrentEncoder",
    "value_module",
]
