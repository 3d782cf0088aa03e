"""Correlated multi-agent policies for TorchRL (AgentMixer, arXiv 2401.08728)."""

from __future__ import annotations

from torchrl_agentmixer.distributions import (
    GroupedDistribution,
    GroupedMixture,
    IGCCategorical,
    IGCMixture,
    IGCNormal,
    IGCTanhNormal,
)
from torchrl_agentmixer.export import export_decentralized
from torchrl_agentmixer.groups import AgentGroup, agent_groups
from torchrl_agentmixer.modules import MixerBlock, PolicyModifier
from torchrl_agentmixer.policies import AgentMixerPolicy

__version__ = "0.1.0"

__all__ = [
    "AgentGroup",
    "AgentMixerPolicy",
    "GroupedDistribution",
    "GroupedMixture",
    "IGCCategorical",
    "IGCMixture",
    "IGCNormal",
    "IGCTanhNormal",
    "MixerBlock",
    "PolicyModifier",
    "agent_groups",
    "export_decentralized",
]
