"""The one training loop: collect, update, evaluate the decentralized policy, log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, RewardSum, TransformedEnv

from torchrl_agentmixer.envs import with_memory
from torchrl_agentmixer.training.evaluation import Evaluation, evaluate
from torchrl_agentmixer.training.run_directory import RunDirectory


class Algorithm(Protocol):
    """All that the loop knows of a method."""

    policy: TensorDictModuleBase
    execution_policy: TensorDictModuleBase
    individual_policy: TensorDictModuleBase

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Learn from trajectories ``[num_envs, steps]``; return metrics."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Parameters and buffers."""
        ...


@dataclass(kw_only=True)
class LoopConfig:
    """How long to train and how often to evaluate; all in environment steps ("frames").

    Args:
        total_frames: frames of the whole training.
        frames_per_batch: frames of one batch, a multiple of the number of environments.
        eval_interval: frames between two evaluations; one more follows the last update.
        eval_steps: longest evaluation episode, in steps.
        eval_seed: of the evaluation episodes, the same every time.
    """

    total_frames: int
    frames_per_batch: int
    eval_interval: int
    eval_steps: int
    eval_seed: int = 1_000_003

    def __post_init__(self) -> None:
        for name in ("total_frames", "frames_per_batch", "eval_interval", "eval_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"LoopConfig: expected `{name}` >= 1, got {getattr(self, name)}.")


def train(
    algorithm: Algorithm,
    env: EnvBase,
    eval_env: EnvBase,
    config: LoopConfig,
    run: RunDirectory,
    *,
    on_metrics: Callable[[dict[str, float | None]], None] | None = None,
) -> dict[str, float | None]:
    """Train; write ``metrics.csv``, ``evaluation.csv`` and ``algorithm.pt`` to the run directory.

    Evaluation runs ``algorithm.execution_policy``, the decentralized one, in environments of its
    own, and beside it the joint policy's own mode and the individual policies as they are, sampled,
    to show what decentralization costs (``eval_``, ``eval_joint_`` and ``eval_individual_``
    columns).

    Args:
        algorithm (Algorithm): a method.
        env (EnvBase): to collect in, ``[num_envs]``; team reward at the root.
        eval_env (EnvBase): to evaluate in.
        config (LoopConfig): lengths and intervals.
        run (RunDirectory): where results go.

    Keyword Args:
        on_metrics (callable, optional): sees each row, for a progress bar or a logger.

    Returns:
        dict: the last row of metrics.

    Raises:
        ValueError: if ``frames_per_batch`` is no multiple of the number of environments.
        FloatingPointError: when an entry of a batch, or a metric, is not finite; the run
            directory keeps all that was written before.
    """
    num_envs = env.batch_size.numel()
    if config.frames_per_batch % num_envs:
        raise ValueError(
            f"expected `frames_per_batch` to be a multiple of {num_envs} environments, "
            f"got {config.frames_per_batch}."
        )
    env = with_memory(env, algorithm.policy)
    env = TransformedEnv(env, RewardSum(in_keys=["reward"], out_keys=["episode_reward"]))
    collector = Collector(
        env,
        algorithm.policy,
        frames_per_batch=config.frames_per_batch,
        total_frames=config.total_frames,
        device=env.device,
    )
    frames, next_eval = 0, config.eval_interval
    row: dict[str, float | None] = {}
    seconds: dict[str, float] = {}
    batches = iter(collector)
    try:
        while frames < config.total_frames:
            with _timed(seconds, "collect"):
                batch = next(batches)
            frames += batch.numel()
            _check_finite(batch, frames)
            row = {"frames": frames, **_batch_metrics(batch)}
            with _timed(seconds, "update"):
                row |= algorithm.update(batch)
            _check_metrics(row, frames)
            collector.update_policy_weights_()
            evaluating = frames >= next_eval or frames >= config.total_frames
            with _timed(seconds, "evaluate"):
                row |= _evaluations(algorithm, eval_env, config, frames, evaluating, run)
            if evaluating:
                next_eval = frames - frames % config.eval_interval + config.eval_interval
            row |= _rates(seconds, batch.numel())
            run.log(row)
            if on_metrics is not None:
                on_metrics(row)
    finally:
        collector.shutdown()
    torch.save(algorithm.state_dict(), run.path / "algorithm.pt")
    return row


def _batch_metrics(batch: TensorDictBase) -> dict[str, float | None]:
    """Mean return and win rate of the episodes that ended, and reward per step, in collection."""
    done = batch["next", "done"]
    ended = batch["next", "episode_reward"][done]
    metrics = {
        "return": float(ended.mean()) if ended.numel() else None,
        "score": float(batch["next", "reward"].mean()),
    }
    won = batch["next"].get("battle_won", None)
    if won is not None:
        metrics["win_rate"] = float(won[done].float().mean()) if ended.numel() else None
    return metrics


def _evaluations(
    algorithm: Algorithm,
    eval_env: EnvBase,
    config: LoopConfig,
    frames: int,
    evaluating: bool,
    run: RunDirectory,
) -> dict[str, float | None]:
    names = ["return", "score", "length"]
    if "battle_won" in eval_env.observation_spec.keys():  # noqa: SIM118
        names.append("win_rate")
    if not evaluating:
        return {
            f"{prefix}_{name}": None
            for prefix in ("eval", "eval_joint", "eval_individual")
            for name in names
        }

    def run_episodes(policy: TensorDictModuleBase, deterministic: bool = True) -> Evaluation:
        return evaluate(
            policy,
            eval_env,
            max_steps=config.eval_steps,
            seed=config.eval_seed,
            deterministic=deterministic,
        )

    decentralized = run_episodes(algorithm.execution_policy)
    run.log_episodes(frames, decentralized)
    return {
        **decentralized.metrics("eval"),
        **run_episodes(algorithm.policy).metrics("eval_joint"),
        **run_episodes(algorithm.individual_policy, False).metrics("eval_individual"),
    }


def _check_finite(batch: TensorDictBase, frames: int) -> None:
    for key, value in batch.items(include_nested=True, leaves_only=True):
        if value.is_floating_point() and not torch.isfinite(value).all():
            index = tuple((~torch.isfinite(value)).nonzero()[0].tolist())
            raise FloatingPointError(
                f"entry {key!r} of the batch that ends at frame {frames} is "
                f"{value[index].item()} at index {index} of shape {tuple(value.shape)} "
                "(environment, step, ...): expected finite numbers. "
                "The run directory keeps all that was logged before."
            )


def _check_metrics(row: Mapping[str, float | None], frames: int) -> None:
    for name, value in row.items():
        if value is not None and not math.isfinite(value):
            raise FloatingPointError(
                f"metric {name!r} is {value} after the update at frame {frames}: expected a finite "
                "number. The parameters are lost; lower the learning rate or look at the rewards."
            )


def _rates(seconds: dict[str, float], frames: int) -> dict[str, float]:
    total = sum(seconds.values())
    rates = {f"fps_{name}": frames / max(t, 1e-9) for name, t in seconds.items()}
    return {"fps": frames / max(total, 1e-9), **rates}


@contextmanager
def _timed(seconds: dict[str, float], name: str):
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
