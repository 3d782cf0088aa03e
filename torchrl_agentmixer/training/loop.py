"""The one training loop: collect, update, evaluate the decentralized policy, log."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_agentmixer import distributed
from torchrl_agentmixer.training.checkpointing import (
    RunCheckpoints,
    check_ranks,
    load_random_state,
    part_of_rank,
    parts_of_ranks,
    random_state,
)
from torchrl_agentmixer.training.collection import Collection, Workers, make_collection
from torchrl_agentmixer.training.early_stopping import EarlyStopping
from torchrl_agentmixer.training.evaluation import record_gif
from torchrl_agentmixer.training.finite import check_batch, check_update
from torchrl_agentmixer.training.metrics import batch_metrics, evaluation_metrics, rates
from torchrl_agentmixer.training.run_directory import RunDirectory
from torchrl_agentmixer.training.signals import (
    asked_to_end,
    what_died,
    worker_processes,
)


class Algorithm(Protocol):
    """All that the loop knows of a method.

    ``policy`` collects, and its mode is evaluated as the joint one; ``execution_policy`` takes the
    modes of ``individual_policy``, which samples. Where there is no joint policy beside the
    individual ones, ``individual_policy`` is ``policy``, and is not evaluated twice.
    """

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
        video_interval: frames between two animations of the first evaluation episode, at
            evaluations, the first one before training; ``None`` for none.
        early_stopping: when training ends before ``total_frames``; never by default.
    """

    total_frames: int
    frames_per_batch: int
    eval_interval: int
    eval_steps: int
    eval_seed: int = 1_000_003
    checkpoint_interval: int | None = None
    keep_checkpoints: int = 2
    max_time: float | None = None
    video_interval: int | None = None
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)

    def __post_init__(self) -> None:
        for name in (
            "total_frames",
            "frames_per_batch",
            "eval_interval",
            "eval_steps",
            "checkpoint_interval",
            "keep_checkpoints",
            "video_interval",
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
    workers: Workers | None = None,
    on_start: Callable[[int], None] | None = None,
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
    written at the end of training alone, which ``config.early_stopping`` may bring about. A run
    directory that was opened with ``resume=True`` goes on from its newest whole checkpoint to the
    same numbers as a run that was never stopped (on a CPU, bit for bit, ``fps`` aside), if the
    environment can tell its state (see :func:`~torchrl_agentmixer.envs.simulation_state`); else
    with new episodes.

    A batch, metric or parameter that is not finite, and a worker process that dies, end the run
    with an error that names it, and the checkpoint to go back to.

    Where ``torchrun`` started several processes (:mod:`torchrl_agentmixer.distributed`), each of
    them calls this
    with environments of its own, all as many, and all of them are one run: frames count over all
    ranks, every gradient step is on the mean of the ranks' gradients, and the first rank evaluates
    and writes the run directory.

    Args:
        algorithm (Algorithm): a method.
        env (EnvBase): to collect in, ``[num_envs]``; team reward at the root. Of each rank its own.
        eval_env (EnvBase): to evaluate in.
        config (LoopConfig): lengths and intervals.
        run (RunDirectory): where results go.

    Keyword Args:
        workers (Workers, optional): processes or Ray actors that collect; ``env`` then tells sizes
            alone.
        on_start (callable, optional): is told the frames done so far, before the first batch: 0,
            or those of the checkpoint.
        on_metrics (callable, optional): sees each row, for a progress bar or a logger.
        on_message (callable, optional): is told what a user should know: which checkpoint was
            resumed from, why not from a newer one, and why a run ends early. Default: a warning.

    Returns:
        dict: the last row of metrics.

    Raises:
        ValueError: if ``frames_per_batch`` is no multiple of the number of environments, no
            checkpoint is whole, or ``early_stopping`` names a metric that there is not.
        FileNotFoundError: if there is none to resume from.
        FloatingPointError: when an entry of a batch, a metric or a parameter is not finite; the
            run directory keeps all that was written before.
        RuntimeError: when a worker process dies, of a ``ParallelEnv`` or of ``workers``.
        SystemExit: after SIGTERM or SIGINT, with the code that shells give them.
    """
    num_envs = env.batch_size.numel() * distributed.world_size()
    if config.frames_per_batch % num_envs:
        raise ValueError(
            f"expected `frames_per_batch` to be a multiple of {num_envs} environments, "
            f"got {config.frames_per_batch}."
        )
    tell = on_message or partial(warnings.warn, stacklevel=2)
    say = tell if distributed.rank() == 0 else _nothing
    frames_per_batch = config.frames_per_batch // distributed.world_size()
    collection = make_collection(env, algorithm.policy, frames_per_batch, workers)
    checkpoints = RunCheckpoints(run.path / "checkpoints", keep=config.keep_checkpoints)
    evaluating_by = worker_processes(eval_env)
    position = _Position(next_eval=config.eval_interval)
    next_checkpoint = config.checkpoint_interval
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def died(error: Exception) -> str | None:
        return collection.what_died(error) or what_died(evaluating_by)

    def save() -> None:
        own = {
            "algorithm": algorithm.checkpoint_state(),
            "collector": collection.state(),
            "random": random_state(),
        }
        parts = parts_of_ranks(distributed.gather(own))
        parts["loop"] = {**vars(position), "sizes": run.sizes(), "ranks": distributed.world_size()}
        distributed.from_first(lambda: checkpoints.save(parts, frames=position.frames))

    try:
        with asked_to_end() as asked:
            if run.resume:
                _resume(position, checkpoints, algorithm, collection, run, say)
                if next_checkpoint is not None:
                    next_checkpoint = _after(position.frames, next_checkpoint)
            else:
                distributed.start_alike(algorithm.state_dict())
                collection.update_parameters()
            if on_start is not None:
                on_start(position.frames)
            if not run.resume:
                _film(position, algorithm, eval_env, config, run)
                if next_checkpoint is not None:
                    save()  # from now on, there is one to resume from
            batches = collection.batches()
            reason = config.early_stopping.reason(position.stopping)
            if position.frames < config.total_frames and reason is None:
                # It says that a run has ended.
                distributed.from_first(lambda: (run.path / "algorithm.pt").unlink(missing_ok=True))
            while position.frames < config.total_frames and reason is None:
                with _explained(position, checkpoints, died, asked, tell):
                    with _timed(seconds, "collect"):
                        batch = next(batches)
                    size = batch.numel() * distributed.world_size()
                    frames = position.frames + size
                    check_batch(batch, frames)
                    collection.share_statistics()
                    row = {"frames": frames, **batch_metrics(batch)}
                    with _timed(seconds, "update"):
                        row |= distributed.mean_row(algorithm.update(batch))
                    check_update(row, algorithm.state_dict(), frames)
                    collection.update_parameters()
                    evaluating = frames >= position.next_eval or frames >= config.total_frames
                    with _timed(seconds, "evaluate"):
                        row |= evaluation_metrics(
                            algorithm, eval_env, config, frames, evaluating, run
                        )
                config.early_stopping.check(row)
                position.frames, position.row = frames, row
                if evaluating:
                    position.next_eval = _after(frames, config.eval_interval)
                    position.stopping = config.early_stopping.after(row, position.stopping)
                    reason = config.early_stopping.reason(position.stopping)
                    _film(position, algorithm, eval_env, config, run)
                row |= rates(seconds, size)
                run.log(row)
                if on_metrics is not None:
                    on_metrics(row)
                over = config.max_time is not None and time.monotonic() - began > config.max_time
                done = frames >= config.total_frames or reason is not None
                with _explained(position, checkpoints, died, asked, tell):
                    late, signal_number = distributed.largest(over, asked[0] if asked else 0)
                    ending = late or done or signal_number
                    if next_checkpoint is not None and (ending or frames >= next_checkpoint):
                        save()
                        next_checkpoint = _after(frames, cast(int, config.checkpoint_interval))
                if signal_number:
                    name = signal.Signals(signal_number).name
                    say(f"{run.path}: {name} at frame {frames:,}; resume to go on.")
                    raise SystemExit(128 + signal_number)
                if late and not done:
                    say(f"{run.path}: {config.max_time} s are over at frame {frames:,}.")
                    return row
    finally:
        collection.close()
    if reason is not None and position.frames < config.total_frames:
        say(f"{run.path}: stopped early at frame {position.frames:,}: {reason}.")
    distributed.from_first(lambda: torch.save(algorithm.state_dict(), run.path / "algorithm.pt"))
    return position.row


@dataclass
class _Position:
    """How far a run is, as its checkpoints hold it."""

    next_eval: int
    next_video: int = 0
    frames: int = 0
    row: dict[str, float | None] = field(default_factory=dict)
    stopping: Mapping[str, Any] = field(default_factory=dict)


def _resume(
    position: _Position,
    checkpoints: RunCheckpoints,
    algorithm: Algorithm,
    collection: Collection,
    run: RunDirectory,
    say: Callable[[str], None],
) -> None:
    """Go on from the newest whole checkpoint."""
    frames, parts = distributed.from_first(lambda: checkpoints.load_newest(say))
    check_ranks(parts["loop"].get("ranks", 1))
    algorithm.load_checkpoint_state(part_of_rank(parts, "algorithm"))
    collection.update_parameters()
    loop = parts["loop"]
    run.cut(loop["sizes"])
    position.frames, position.row, position.next_eval = frames, loop["row"], loop["next_eval"]
    position.next_video = loop.get("next_video", 0)  # older checkpoints lack these
    position.stopping = loop.get("stopping", {})
    say(f"{run.path}: resumed from the checkpoint at frame {frames:,}.")
    why = collection.load_state(part_of_rank(parts, "collector"))
    if why is not None:
        say(f"{run.path}: {why}; episodes begin anew.")
    load_random_state(part_of_rank(parts, "random"))


@contextmanager
def _explained(
    position: _Position,
    checkpoints: RunCheckpoints,
    died_of: Callable[[Exception], str | None],
    asked: Sequence[signal.Signals],
    say: Callable[[str], None],
) -> Iterator[None]:
    """Errors name the worker that died, if one did, and the checkpoint to go back to."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"{error} {_way_back(checkpoints)}") from error
    except Exception as error:
        died = died_of(error)
        if died is None:
            what = str(error) if isinstance(error, ConnectionError) else type(error).__name__
            say(f"{what} after frame {position.frames:,}. {_way_back(checkpoints)}")
            raise
        died = f"{died}, after frame {position.frames:,}. {_way_back(checkpoints)}"
        if asked:  # a signal to all processes of a job reaches the workers as well
            say(f"{asked[0].name}: {died}")
            raise SystemExit(128 + asked[0]) from error
        raise RuntimeError(died) from error


def _nothing(message: str) -> None:
    """What ranks other than the first say."""


def _after(frames: int, interval: int) -> int:
    """The next multiple of ``interval``."""
    return frames - frames % interval + interval


def _way_back(checkpoints: RunCheckpoints) -> str:
    if checkpoints.newest is None:
        return "There is no checkpoint to go back to: `checkpoint_interval` writes them."
    return f"{checkpoints.newest} is from before: resume from it (docs/checkpoints.md)."


def _film(
    position: _Position,
    algorithm: Algorithm,
    eval_env: EnvBase,
    config: LoopConfig,
    run: RunDirectory,
) -> None:
    """Record the first evaluation episode if it is time, and leave random numbers as they are."""
    if config.video_interval is None or position.frames < position.next_video or distributed.rank():
        return
    path = run.path / "videos" / f"{position.frames:012d}.gif"
    path.parent.mkdir(exist_ok=True)
    state = random_state()
    try:
        record_gif(
            algorithm.execution_policy,
            eval_env,
            path,
            max_steps=config.eval_steps,
            seed=config.eval_seed,
        )
    finally:
        load_random_state(state)
    position.next_video = _after(position.frames, config.video_interval)


@contextmanager
def _timed(seconds: dict[str, float], name: str):
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
