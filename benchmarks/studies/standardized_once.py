"""Candidate of several studies: AgentMixer without the second standardization of advantages."""

from __future__ import annotations

from torchrl_agentmixer.algorithms import AgentMixer, AgentMixerConfig
from torchrl_agentmixer.algorithms.registry import register_algorithm
from torchrl_agentmixer.objectives import HuberPPOLoss


class StandardizedOnce(AgentMixer):
    """AgentMixer with the optimism of OptiMAPPO, as before November 2026."""

    loss_class = HuberPPOLoss


register_algorithm("agent_mixer_standardized_once", StandardizedOnce, AgentMixerConfig)
