"""Methods: each builds policy, critic, loss and optimizer."""

from __future__ import annotations

from torchrl_agentmixer.algorithms.agent_mixer import AgentMixer, AgentMixerConfig
from torchrl_agentmixer.algorithms.ail import AIL, AILConfig
from torchrl_agentmixer.algorithms.armappo import ARMAPPO
from torchrl_agentmixer.algorithms.happo import HAPPO, HAPPOConfig
from torchrl_agentmixer.algorithms.mappo import IPPO, MAPPO
from torchrl_agentmixer.algorithms.mat import (
    MAT,
    MATConfig,
    MATDec,
    MATDecConfig,
)
from torchrl_agentmixer.algorithms.maven import MAVEN, MAVENConfig
from torchrl_agentmixer.algorithms.ppo import PPOAlgorithm, PPOConfig
from torchrl_agentmixer.algorithms.registry import (
    available_algorithms,
    decentralized_execution,
    default_options,
    make_algorithm,
)
from torchrl_agentmixer.algorithms.sac import AgentMixerSAC, AgentMixerSACConfig
from torchrl_agentmixer.algorithms.schedules import Schedule

__all__ = [
    "AIL",
    "ARMAPPO",
    "HAPPO",
    "IPPO",
    "MAPPO",
    "MAT",
    "MAVEN",
    "AILConfig",
    "AgentMixer",
    "AgentMixerConfig",
    "AgentMixerSAC",
    "AgentMixerSACConfig",
    "HAPPOConfig",
    "MATConfig",
    "MATDec",
    "MATDecConfig",
    "MAVENConfig",
    "PPOAlgorithm",
    "PPOConfig",
    "Schedule",
    "available_algorithms",
    "decentralized_execution",
    "default_options",
    "make_algorithm",
]
