"""Algorithms: AgentMixer and the baselines."""

from __future__ import annotations

from torchrl_agentmixer.algorithms.agent_mixer import (
    AgentMixer,
    AgentMixerConfig,
    ContinuousAgentMixer,
    ContinuousAgentMixerConfig,
)
from torchrl_agentmixer.algorithms.ail import AIL, AILConfig
from torchrl_agentmixer.algorithms.armappo import ARMAPPO
from torchrl_agentmixer.algorithms.base import Algorithm
from torchrl_agentmixer.algorithms.happo import HAPPO, HAPPOConfig
from torchrl_agentmixer.algorithms.hasac import HASAC, HASACConfig
from torchrl_agentmixer.algorithms.magpo import MAGPO, MAGPOConfig
from torchrl_agentmixer.algorithms.mappo import IPPO, MAPPO
from torchrl_agentmixer.algorithms.masac import MASAC
from torchrl_agentmixer.algorithms.mat import MAT, MATConfig, MATDec, MATDecConfig
from torchrl_agentmixer.algorithms.maven import MAVEN, MAVENConfig
from torchrl_agentmixer.algorithms.ppo import PPOAlgorithm
from torchrl_agentmixer.algorithms.ppo_config import PPOConfig
from torchrl_agentmixer.algorithms.registry import (
    algorithm_class,
    available_algorithms,
    default_options,
    make_algorithm,
    register_algorithm,
    resolved_options,
)
from torchrl_agentmixer.algorithms.sac import AgentMixerSAC, AgentMixerSACConfig
from torchrl_agentmixer.algorithms.sac_base import SACAlgorithm, SACConfig
from torchrl_agentmixer.schedules import Schedule

__all__ = [
    "AIL",
    "ARMAPPO",
    "HAPPO",
    "HASAC",
    "IPPO",
    "MAGPO",
    "MAPPO",
    "MASAC",
    "MAT",
    "MAVEN",
    "AILConfig",
    "AgentMixer",
    "AgentMixerConfig",
    "AgentMixerSAC",
    "AgentMixerSACConfig",
    "Algorithm",
    "ContinuousAgentMixer",
    "ContinuousAgentMixerConfig",
    "HAPPOConfig",
    "HASACConfig",
    "MAGPOConfig",
    "MATConfig",
    "MATDec",
    "MATDecConfig",
    "MAVENConfig",
    "PPOAlgorithm",
    "PPOConfig",
    "SACAlgorithm",
    "SACConfig",
    "Schedule",
    "algorithm_class",
    "available_algorithms",
    "default_options",
    "make_algorithm",
    "register_algorithm",
    "resolved_options",
]
