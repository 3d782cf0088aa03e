"""The one training loop: collect, update, evaluate the decentralized policy, log."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, RewardSum, TransformedEnv

from torchrl_agentmixer.envs import with_memory
from torchrl_agentmixer.training.checkpointing import (
    RunCheckpoints,
    collector_state,
    load_collector_state,
    load_random_state,
    random_state,
)
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

    def checkpoint_state(self) -> dict[str, Any]:
        """All that decides how training goes on."""
        ...

    def load_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
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
        checkpoint_interval: frames between two checkpoints; ``None`` for none.
        keep_checkpoints: how many of the newest ones stay.
        max_time: seconds after which training stops, with a checkpoint; ``None`` for no limit.
    """

    total_frames: int
    frames_per_batch: int
    eval_interval: int
    eval_steps: int
    eval_seed: int = 1_000_003
    checkpoint_interval: int | None = None
    keep_checkpoints: int = 2
    max_time: float | None = None

    def __post_init__(self) -> None:
        for name in (
            "total_frames",
            "frames_per_batch",
            "eval_interval",
            "eval_steps",
            "checkpoint_interval",
            "keep_checkpoints",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"LoopConfig: expected `{name}` >= 1, got {value}.")
        if self.max_time is not None and self.max_time <= 0:
            raise ValueError(f"LoopConfig: expected `max_time` > 0, got {self.max_time}.")


def train(
    algorithm: Algorithm,
    env: EnvBase,
    eval_env: EnvBase,
    config: LoopConfig,
    run: RunDirectory,
    *,
    on_metrics: Callable[[dict[str, float | None]], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> dict[str, float | None]:
    """Train; write ``metrics.csv``, ``evaluation.csv`` and ``algorithm.pt`` to the run directory.

    Evaluation runs ``algorithm.execution_policy``, the decentralized one, in environments of its
    own, and beside it the joint policy's own mode and the individual policies as they are, sampled,
    to show what decentralization costs (``eval_``, ``eval_joint_`` and ``eval_individual_``
    columns).

    With ``config.checkpoint_interval``, checkpoints are written to ``checkpoints/``: before the
    first batch, at each interval, at the end, at ``config.max_time``, and, after the batch it is
    at, when the process is asked to end (SIGTERM; SIGINT, which is Ctrl-C). ``algorithm.pt`` is
    written at the end of training alone. A run directory that was opened with ``resume=True`` goes
    on from its newest whole checkpoint to the same numbers as a run that was never stopped (on a
    CPU, bit for bit, ``fps`` aside), if the environment can tell its state (see
    :func:`~torchrl_agentmixer.envs.simulation_state`); else with new episodes.

    Args:
        algorithm (Algorithm): a method.
        env (EnvBase): to collect in, ``[num_envs]``; team reward at the root.
        eval_env (EnvBase): to evaluate in.
        config (LoopConfig): lengths and intervals.
        run (RunDirectory): where results go.

    Keyword Args:
        on_metrics (callable, optional): sees each row, for a progress bar or a logger.
        on_message (callable, optional): is told what a user should know: which checkpoint was
            resumed from, and why not from a newer one. Default: a warning.

    Returns:
        dict: the last row of metrics.

    Raises:
        ValueError: if ``frames_per_batch`` is no multiple of the number of environments, or no
            checkpoint is whole.
        FileNotFoundError: if there is none to resume from.
        FloatingPointError: when an entry of a batch, or a metric, is not finite; the run
            directory keeps all that was written before.
        SystemExit: after SIGTERM or SIGINT, with the code that shells give them.
    """
    num_envs = env.batch_size.numel()
    if config.frames_per_batch % num_envs:
        raise ValueError(
            f"expected `frames_per_batch` to be a multiple of {num_envs} environments, "
            f"got {config.frames_per_batch}."
        )
    say = on_message or partial(warnings.warn, stacklevel=2)
    env = with_memory(env, algorithm.policy)
    env = TransformedEnv(env, RewardSum(in_keys=["reward"], out_keys=["episode_reward"]))
    collector = Collector(
        env,
        algorithm.policy,
        frames_per_batch=config.frames_per_batch,
        total_frames=-1,  # the loop counts, from where it was resumed
        device=env.device,
    )
    checkpoints = RunCheckpoints(run.path / "checkpoints", keep=config.keep_checkpoints)
    frames, next_eval, next_checkpoint = 0, config.eval_interval, config.checkpoint_interval
    row: dict[str, float | None] = {}
    seconds: dict[str, float] = {}
    began = time.monotonic()
    try:
        if run.resume:
            frames, parts = checkpoints.load_newest(say)
            algorithm.load_checkpoint_state(parts["algorithm"])
            collector.update_policy_weights_()
            row, next_eval = parts["loop"]["row"], parts["loop"]["next_eval"]
            run.cut(parts["loop"]["sizes"])
            say(f"{run.path}: resumed from the checkpoint at frame {frames:,}.")
            if not load_collector_state(collector, parts["collector"]):
                say(f"{run.path}: the environment cannot tell its state; episodes begin anew.")
            load_random_state(parts["random"])
            if next_checkpoint is not None:
                next_checkpoint += frames - frames % next_checkpoint

        def save() -> None:
            loop = {"row": row, "next_eval": next_eval, "sizes": run.sizes()}
            parts = {
                "algorithm": algorithm.checkpoint_state(),
                "collector": collector_state(collector),
                "loop": loop,
                "random": random_state(),
            }
            checkpoints.save(parts, frames=frames)

        batches = iter(collector)
        with _asked_to_end() as asked:
            if next_checkpoint is not None and not run.resume:
                save()  # from now on, there is one to resume from
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
                late = config.max_time is not None and time.monotonic() - began > config.max_time
                last = late or bool(asked) or frames >= config.total_frames
                if next_checkpoint is not None and (last or frames >= next_checkpoint):
                    save()
                    interval = cast(int, config.checkpoint_interval)
                    next_checkpoint = frames - frames % interval + interval
                if asked:
                    say(f"{run.path}: {asked[0].name} at frame {frames:,}; resume to go on.")
                    raise SystemExit(128 + asked[0])
                if late and frames < config.total_frames:
                    say(f"{run.path}: {config.max_time} s are over at frame {frames:,}.")
                    return row
    finally:
        collector.shutdown()
    torch.save(algorithm.state_dict(), run.path / "algorithm.pt")
    return row


@contextmanager
def _asked_to_end() -> Iterator[list[signal.Signals]]:
    """Note SIGTERM and SIGINT instead of ending at once; a second one ends at once."""
    asked: list[signal.Signals] = []

    def note(number: int, frame: Any) -> None:
        asked.append(signal.Signals(number))
        signal.signal(number, before[number])

    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals go to the main thread
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {int(number): signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
