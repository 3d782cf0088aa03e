"""Environments with TorchRL's multi-agent interface."""

from __future__ import annotations

from typing import Any

from torchrl_agentmixer.envs.adapters import team_env
from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.bridge_crossing import BridgeCrossingEnv
from torchrl_agentmixer.envs.continuous_games import (
    ContinuousGameEnv,
    SmoothMatrixGame,
    two_quadratics,
)
from torchrl_agentmixer.envs.matrix_games import (
    MatrixGameEnv,
    climbing,
    climbing_spread,
    penalty,
    stag_hunt,
)
from torchrl_agentmixer.envs.memory import with_memory
from torchrl_agentmixer.envs.normalization import (
    ObservationNormalizer,
    normalize_observations,
    observation_normalizer,
)
from torchrl_agentmixer.envs.optional import CLASSES, load
from torchrl_agentmixer.envs.predator_prey_grid import PredatorPreyGridEnv
from torchrl_agentmixer.envs.recall import RecallEnv
from torchrl_agentmixer.envs.registry import available_envs, make_env, register_env
from torchrl_agentmixer.envs.simulation import load_simulation_state, simulation_state

__all__ = [
    "BridgeCrossingEnv",
    "ContinuousGameEnv",
    "MaMujocoEnv",
    "MatrixGameEnv",
    "ObservationNormalizer",
    "PredatorPreyGridEnv",
    "PredatorPreyScenario",
    "RecallEnv",
    "SMACv2TeamEnv",
    "SmaxEnv",
    "SmoothMatrixGame",
    "TeamEnv",
    "VmasTeamEnv",
    "available_envs",
    "climbing",
    "climbing_spread",
    "load_simulation_state",
    "make_env",
    "normalize_observations",
    "observation_normalizer",
    "penalty",
    "register_env",
    "simulation_state",
    "stag_hunt",
    "team_env",
    "two_quadratics",
    "with_memory",
]


def __getattr__(name: str) -> Any:
    """Import classes that need an optional dependency on first use."""
    if name in CLASSES:
        return load(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
