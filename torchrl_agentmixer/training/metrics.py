"""Columns of ``metrics.csv`` besides the metrics of an algorithm's update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.base import Algorithm
from torchrl_agentmixer.training.evaluation import Evaluation, evaluate
from torchrl_agentmixer.training.protocol import LoopConfig, Row


def batch_metrics(
    batch: TensorDictBase, mean: Callable[[torch.Tensor], float | None]
) -> dict[str, float | None]:
    """Mean return and win rate of the episodes that ended in a batch, and its mean reward.

    Args:
        batch (TensorDictBase): ``[num_envs, steps]``.
        mean (callable): mean over entries; ``None`` of no entries.
    """
    done = batch["next", "done"]
    metrics = {
        "return": mean(batch["next", "episode_reward"][done]),
        "score": mean(batch["next", "reward"]),
    }
    won = batch["next"].get("battle_won", None)
    return metrics if won is None else {**metrics, "win_rate": mean(won[done])}


def evaluation_metrics(
    algorithm: Algorithm,
    env: EnvBase,
    config: LoopConfig,
    log_episodes: Callable[[Evaluation], None],
) -> Row:
    """Evaluate each of ``algorithm.evaluated_policies``; the deployed one's episodes are logged."""
    row: Row = {}
    for prefix, policy in algorithm.evaluated_policies.items():
        result = evaluate(policy, env, max_steps=config.eval_steps, seed=config.eval_seed)
        row |= result.metrics(prefix)
        if prefix == "eval":
            log_episodes(result)
    return row


def no_metrics(algorithm: Algorithm, env: EnvBase) -> Row:
    """The columns of :func:`evaluation_metrics`, each ``None``."""
    wins = ["win_rate"] if "battle_won" in env.observation_spec.keys() else []  # noqa: SIM118
    names = ["return", "score", "length", *wins]
    return {f"{prefix}_{name}": None for prefix in algorithm.evaluated_policies for name in names}


def rates(seconds: dict[str, float], frames: int) -> dict[str, float]:
    """Frames per second, in total and of each part of a batch's wall time."""
    total = sum(seconds.values())
    parts = {f"fps_{name}": frames / max(t, 1e-9) for name, t in seconds.items()}
    return {"fps": frames / max(total, 1e-9), **parts}
