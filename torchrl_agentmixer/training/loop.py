"""The training loop: collect, update, evaluate, log, save checkpoints."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_agentmixer import distributed
from torchrl_agentmixer.algorithms.base import Algorithm
from torchrl_agentmixer.training.checkpointing import RunCheckpoints, state_of_rank
from torchrl_agentmixer.training.collection import Collection
from torchrl_agentmixer.training.evaluation import check_batch_size, check_videos, record_gif
from torchrl_agentmixer.training.finite import check_batch, check_update
from torchrl_agentmixer.training.metrics import batch_metrics, evaluation_metrics, no_metrics, rates
from torchrl_agentmixer.training.protocol import LoopConfig, Row
from torchrl_agentmixer.training.randomness import load_random_state, random_state
from torchrl_agentmixer.training.run_directory import RunDirectory
from torchrl_agentmixer.training.signals import (
    Interrupted,
    SignalHandler,
    dead_worker,
    worker_processes,
)
from torchrl_agentmixer.training.workers import Workers, make_collection


def train(
    algorithm: Algorithm,
    env: EnvBase,
    eval_env: EnvBase,
    config: LoopConfig,
    run: RunDirectory,
    *,
    workers: Workers | None = None,
    on_start: Callable[[int], None] | None = None,
    on_metrics: Callable[[Row], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Row:
    """Train an algorithm, write results to ``run``, and return the last row of metrics.

    Checkpoints are saved before the first batch, at each ``config.checkpoint_interval``, and when
    training ends, also by SIGTERM and SIGINT (Ctrl-C). ``RunDirectory(resume=True)`` resumes the
    newest intact one: on a CPU to the same numbers as an uninterrupted run, bit for bit, if the
    environment has a :func:`~torchrl_agentmixer.envs.simulation_state`.

    Ranks of ``torchrun`` (:mod:`torchrl_agentmixer.distributed`) each call this function with
    their own environments, and train one policy. The first rank evaluates and writes.

    Args:
        algorithm (Algorithm): what is trained.
        env (EnvBase): for collection, ``[num_envs]``, with the team reward at the root.
        eval_env (EnvBase): for evaluation.
        config (LoopConfig): length and intervals.
        run (RunDirectory): where results are written.

    Keyword Args:
        workers (Workers, optional): processes that collect instead of ``env``.
        on_start (callable, optional): called with the frames so far, before the first batch.
        on_metrics (callable, optional): called with each row of metrics.
        on_message (callable, optional): called with messages; a warning by default.

    Raises:
        ValueError: for batch sizes other than ``[num_envs]``, ``frames_per_batch`` that they do
            not divide, or videos of an environment without ``render``.
        FloatingPointError: for NaN or infinity in a batch, a metric or a parameter.
        RuntimeError: when a worker process dies.
        Interrupted: after SIGTERM or SIGINT.
    """
    check_batch_size(env=env, eval_env=eval_env)
    frames, ranks = config.frames_per_batch, distributed.world_size()
    num_envs = env.batch_size.numel() * ranks
    if frames % num_envs:
        raise ValueError(
            f"`frames_per_batch`: expected a multiple of {num_envs} environments, got {frames}."
        )
    check_videos(config.video_interval, eval_env)
    policy, compiled = algorithm.policy, algorithm.compile_policy
    if compiled:
        torch.compiler.reset()  # code of earlier runs counts toward PyTorch's recompile limit
    collection = make_collection(env, policy, frames // ranks, workers, compile_policy=compiled)
    ignore: Callable[[Any], None] = lambda value: None  # noqa: E731
    hooks = on_start or ignore, on_metrics or ignore, on_message or warnings.warn
    with closing(collection), SignalHandler() as signals:
        loop = _Loop(algorithm, eval_env, config, run, collection, signals, *hooks)
        loop.run_batches()
    return loop.finish()


@dataclass
class _Position:
    """Progress of a run, as saved in checkpoints."""

    frames: int = 0
    next_video: int = 0
    row: Row = field(default_factory=dict)
    stopping: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Loop:
    """One call of :func:`train`."""

    algorithm: Algorithm
    eval_env: EnvBase
    config: LoopConfig
    run: RunDirectory
    collection: Collection
    signals: SignalHandler
    on_start: Callable[[int], None]
    on_metrics: Callable[[Row], None]
    on_message: Callable[[str], None]

    def __post_init__(self) -> None:
        path = self.run.path / "checkpoints"
        self.checkpoints = RunCheckpoints(path, keep=self.config.keep_checkpoints)
        self.position = _Position()
        self.finished = False
        self.seconds: dict[str, float] = {}
        self.eval_processes = worker_processes(self.eval_env)

    @property
    def complete(self) -> bool:
        stopped = self.config.early_stopping.reason(self.position.stopping) is not None
        return stopped or self.position.frames >= self.config.total_frames

    def log(self, message: str) -> None:
        """Log a message on the first rank."""
        if distributed.rank() == 0:
            self.on_message(f"{self.run.path}: {message}")

    def run_batches(self) -> None:
        """Train until the run is complete, or the time limit or a signal ends it."""
        start_time = time.monotonic()
        self.start()
        batches = self.collection.batches()
        late = 0
        while not (self.complete or late):
            previous = self.position.frames
            with self.explained_errors():
                row = self.process_batch(batches)
            self.record(row)
            with self.explained_errors():
                passed = time.monotonic() - start_time
                over = self.config.max_time is not None and passed > self.config.max_time
                late, number = distributed.largest(over, self.signals.number)
                crossed = _crosses(self.config.checkpoint_interval, previous, self.position.frames)
                if crossed or late or number or self.complete:
                    self.save_checkpoint()
            if number:
                raise Interrupted(self.end_message(signal.Signals(number).name), number)
        if late and not self.complete:
            self.log(self.end_message(f"time limit of {self.config.max_time} s"))

    def start(self) -> None:
        """Begin or resume training."""
        if self.run.resume:
            self.resume()
        else:
            distributed.broadcast_parameters(self.algorithm.state_dict())
            self.collection.update_parameters()
        path = self.run.path / "algorithm.pt"  # marks a complete run
        self.finished = self.complete and distributed.from_first(path.exists)
        if self.finished:
            self.log("complete, nothing changes. To train longer: docs/checkpoints.md.")
            return
        self.on_start(self.position.frames)
        if not self.run.resume:
            self.record_video()
            self.save_checkpoint()
        if not self.complete:
            distributed.from_first(lambda: path.unlink(missing_ok=True))

    def process_batch(self, batches: Iterator[TensorDictBase]) -> Row:
        """Collect, update and evaluate; the row of metrics."""
        with self.timed("collect"):
            batch = next(batches)
        frames = self.position.frames + batch.numel() * distributed.world_size()
        check_batch(batch, frames)
        self.collection.share_statistics(distributed.average_)
        row: Row = {"frames": frames, **batch_metrics(batch, distributed.mean_of_entries)}
        with self.timed("update"):
            row |= distributed.mean_row(self.algorithm.update(batch))
        check_update(row, self.algorithm.state_dict(), frames)
        self.collection.update_parameters()
        with self.timed("evaluate"):
            crossed = _crosses(self.config.eval_interval, self.position.frames, frames)
            if crossed or frames >= self.config.total_frames:
                evaluated = self.algorithm, self.eval_env, self.config
                log_episodes = partial(self.run.log_episodes, frames)
                row |= distributed.from_first(lambda: evaluation_metrics(*evaluated, log_episodes))
            else:
                row |= no_metrics(self.algorithm, self.eval_env)
        return row

    def record(self, row: Row) -> None:
        """Advance the position, and log a row."""
        stopping, position = self.config.early_stopping, self.position
        previous = position.frames
        stopping.check(row)
        position.frames, position.row = int(row["frames"] or 0), row
        if row["eval_return"] is not None:
            position.stopping = stopping.after(row, position.stopping)
            self.record_video()
        row |= rates(self.seconds, position.frames - previous)
        self.run.log(row)
        self.on_metrics(row)

    def record_video(self) -> None:
        """Record an evaluation episode if it is time."""
        interval, frames = self.config.video_interval, self.position.frames
        if interval is None or frames < self.position.next_video or distributed.rank():
            return
        self.position.next_video = frames - frames % interval + interval
        path = self.run.path / "videos" / f"{frames:012d}.gif"
        path.parent.mkdir(exist_ok=True)
        options = {"max_steps": self.config.eval_steps, "seed": self.config.eval_seed}
        record_gif(self.algorithm.execution_policy, self.eval_env, path, **options)

    def save_checkpoint(self) -> None:
        """Save a checkpoint if ``checkpoint_interval`` is set."""
        if self.config.checkpoint_interval is None:
            return
        own = {
            "algorithm": self.algorithm.checkpoint_state(),
            "collector": self.collection.state_dict(),
            "random": random_state(),
        }
        state = {"ranks": distributed.gather(own), "sizes": self.run.sizes(), **vars(self.position)}
        frames = self.position.frames
        distributed.from_first(lambda: self.checkpoints.save(state, frames=frames))

    def resume(self) -> None:
        """Restore the newest intact checkpoint."""
        frames, state = distributed.from_first(lambda: self.checkpoints.load_newest(self.log))
        own = state_of_rank(state.pop("ranks"), distributed.rank(), distributed.world_size())
        self.algorithm.load_checkpoint_state(own["algorithm"])
        self.collection.update_parameters()
        self.run.cut(state.pop("sizes"))
        self.position = _Position(**state)
        self.log(f"resumed from the checkpoint at frame {frames:,}.")
        if (reason := self.collection.load_state_dict(own["collector"])) is not None:
            self.log(f"{reason}; new episodes begin.")
        load_random_state(own["random"])

    def finish(self) -> Row:
        """Write ``algorithm.pt`` if the run is complete; the last row of metrics."""
        frames = self.position.frames
        if self.complete and frames < self.config.total_frames:
            reason = self.config.early_stopping.reason(self.position.stopping)
            self.log(f"stopped early at frame {frames:,}: {reason}.")
        if self.complete and not self.finished:
            path = self.run.path / "algorithm.pt"
            distributed.from_first(lambda: torch.save(self.algorithm.state_dict(), path))
        return self.position.row

    def end_message(self, cause: str) -> str:
        """What ended training before its end, where, and how to resume."""
        hint = "There is no checkpoint to resume from: set `checkpoint_interval`."
        if self.checkpoints.newest is not None:
            hint = f"Resume from {self.checkpoints.newest} (docs/checkpoints.md)."
        return f"{cause} at frame {self.position.frames:,}. {hint}"

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Add the crashed worker and how to resume to errors."""
        try:
            yield
        except FloatingPointError as error:
            raise FloatingPointError(self.end_message(f"{error} Stopped")) from error
        except Exception as error:
            died = self.collection.dead_worker(error) or dead_worker(self.eval_processes)
            if died is None:
                what = str(error) if isinstance(error, ConnectionError) else type(error).__name__
                self.on_message(self.end_message(what))
                raise
            message, number = self.end_message(f"{died},"), self.signals.number
            if number:  # a signal to all processes of a job reaches workers as well
                raise Interrupted(f"{signal.Signals(number).name}: {message}", number) from error
            raise RuntimeError(message) from error

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def _crosses(interval: int | None, previous: int, frames: int) -> bool:
    """Whether there is a multiple of ``interval`` in (``previous``, ``frames``]."""
    return interval is not None and frames // interval > previous // interval
