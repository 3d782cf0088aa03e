"""What a row of ``metrics.csv`` says, beside what a method's update does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_agentmixer import distributed
from torchrl_agentmixer.training.evaluation import evaluate
from torchrl_agentmixer.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from torchrl_agentmixer.training.loop import Algorithm, LoopConfig


def batch_metrics(batch: TensorDictBase) -> dict[str, float | None]:
    """Mean return and win rate of the episodes that ended, and reward per step, in collection."""
    done = batch["next", "done"]
    metrics = {
        "return": _mean(batch["next", "episode_reward"][done]),
        "score": _mean(batch["next", "reward"]),
    }
    won = batch["next"].get("battle_won", None)
    if won is not None:
        metrics["win_rate"] = _mean(won[done])
    return metrics


def _mean(values: torch.Tensor) -> float | None:
    """Over all ranks, which may have different numbers of values; ``None`` of none."""
    if distributed.world_size() == 1:
        return float(values.float().mean()) if values.numel() else None
    total = torch.stack([values.double().sum().cpu(), torch.tensor(float(values.numel())).double()])
    total, count = distributed.mean(total).tolist()
    return total / count if count else None


def evaluation_metrics(
    algorithm: Algorithm,
    eval_env: EnvBase,
    config: LoopConfig,
    frames: int,
    evaluating: bool,
    run: RunDirectory,
) -> dict[str, float | None]:
    """Scores of the policy that is executed, of the joint one and of the individual ones.

    Where it is not time to evaluate, the same names, and ``None``. Of several ranks, the first
    evaluates for all.
    """
    names = ["return", "score", "length"]
    if "battle_won" in eval_env.observation_spec.keys():  # noqa: SIM118
        names.append("win_rate")
    if not evaluating:
        return {f"{p}_{name}": None for p in algorithm.evaluated_policies for name in names}

    def scores() -> dict[str, float | None]:
        row: dict[str, float | None] = {}
        for prefix, policy in algorithm.evaluated_policies.items():
            evaluation = evaluate(
                policy, eval_env, max_steps=config.eval_steps, seed=config.eval_seed
            )
            if prefix == "eval":
                run.log_episodes(frames, evaluation)
            row |= evaluation.metrics(prefix)
        return row

    return distributed.from_first(scores)


def rates(seconds: dict[str, float], frames: int) -> dict[str, float]:
    """Frames per second, of all and of each part of a batch's time."""
    total = sum(seconds.values())
    of_parts = {f"fps_{name}": frames / max(t, 1e-9) for name, t in seconds.items()}
    return {"fps": frames / max(total, 1e-9), **of_parts}
