"""Joint policies, their decentralized policies, and the policies of the baselines."""

from __future__ import annotations

from torchrl_agentmixer.policies.agent_mixer import AgentMixerPolicy
from torchrl_agentmixer.policies.autoregressive import (
    AutoregressivePolicy,
    AutoregressivePolicyBase,
)
from torchrl_agentmixer.policies.behavior_mixture import BehaviorMixture
from torchrl_agentmixer.policies.consistency import (
    consistency_metrics,
    mode_agreement,
    team_divergence,
)
from torchrl_agentmixer.policies.latent import LatentPolicy
from torchrl_agentmixer.policies.product import (
    Greedy,
    RecurrentActor,
    Sampled,
    actor_module,
    mode_policy,
    product_policy,
)
from torchrl_agentmixer.policies.transformer import TransformerPolicy

__all__ = [
    "AgentMixerPolicy",
    "AutoregressivePolicy",
    "AutoregressivePolicyBase",
    "BehaviorMixture",
    "Greedy",
    "LatentPolicy",
    "RecurrentActor",
    "Sampled",
    "TransformerPolicy",
    "actor_module",
    "consistency_metrics",
    "mode_agreement",
    "mode_policy",
    "product_policy",
    "team_divergence",
]
