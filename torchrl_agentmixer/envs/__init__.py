"""Environments behind TorchRL's multi-agent interface."""

from __future__ import annotations

from torchrl_agentmixer.envs.base import TeamEnv
from torchrl_agentmixer.envs.correlation_seed import CorrelationSeed
from torchrl_agentmixer.envs.matrix_games import MatrixGameEnv, climbing, penalty
from torchrl_agentmixer.envs.predator_prey_grid import PredatorPreyGridEnv
from torchrl_agentmixer.envs.registry import available_envs, make_env, register_env

__all__ = [
    "CorrelationSeed",
    "MatrixGameEnv",
    "PredatorPreyGridEnv",
    "TeamEnv",
    "available_envs",
    "climbing",
    "make_env",
    "penalty",
    "register_env",
]
