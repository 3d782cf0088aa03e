"""Environments behind TorchRL's multi-agent interface."""

from __future__ import annotations

from typing import Any

from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.bridge_crossing import BridgeCrossingEnv
from torchrl_agentmixer.envs.correlation_seed import CorrelationSeed
from torchrl_agentmixer.envs.matrix_games import MatrixGameEnv, climbing, penalty, stag_hunt
from torchrl_agentmixer.envs.memory import with_memory
from torchrl_agentmixer.envs.normalization import (
    ObservationNormalizer,
    normalize_observations,
    observation_normalizer,
)
from torchrl_agentmixer.envs.predator_prey_grid import PredatorPreyGridEnv
from torchrl_agentmixer.envs.recall import RecallEnv
from torchrl_agentmixer.envs.registry import available_envs, make_env, register_env
from torchrl_agentmixer.envs.simulation import load_simulation_state, simulation_state

__all__ = [
    "BridgeCrossingEnv",
    "CorrelationSeed",
    "MaMujocoEnv",
    "MatrixGameEnv",
    "ObservationNormalizer",
    "PredatorPreyGridEnv",
    "PredatorPreyScenario",
    "RecallEnv",
    "SMACv2TeamEnv",
    "SmaxEnv",
    "TeamEnv",
    "VmasTeamEnv",
    "available_envs",
    "climbing",
    "load_simulation_state",
    "make_env",
    "normalize_observations",
    "observation_normalizer",
    "penalty",
    "register_env",
    "simulation_state",
    "stag_hunt",
    "with_memory",
]


def __getattr__(name: str) -> Any:
    """Import what needs an extra only when it is asked for."""
    if name == "MaMujocoEnv":
        from torchrl_agentmixer.envs.mamujoco import MaMujocoEnv

        return MaMujocoEnv
    if name == "SMACv2TeamEnv":
        from torchrl_agentmixer.envs.smacv2 import SMACv2TeamEnv

        return SMACv2TeamEnv
    if name == "SmaxEnv":
        from torchrl_agentmixer.envs.smax import SmaxEnv

        return SmaxEnv
    if name == "VmasTeamEnv":
        from torchrl_agentmixer.envs.vmas import VmasTeamEnv

        return VmasTeamEnv
    if name == "PredatorPreyScenario":
        from torchrl_agentmixer.envs.optional import require_vmas

        require_vmas()
        from torchrl_agentmixer.envs.predator_prey import PredatorPreyScenario

        return PredatorPreyScenario
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
