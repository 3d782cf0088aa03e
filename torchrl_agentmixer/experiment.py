"""Experiments: training runs from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrl.envs import EnvBase

from torchrl_agentmixer import distributed
from torchrl_agentmixer.algorithms import Algorithm, make_algorithm
from torchrl_agentmixer.config import CHANGEABLE, PER_CALL, ExperimentConfig, saved_config
from torchrl_agentmixer.envs import make_env, normalize_observations, observation_normalizer
from torchrl_agentmixer.pretrained import check_source, load_normalization, load_parameters
from torchrl_agentmixer.training import (
    LoopConfig,
    MetricLoggers,
    ProgressBar,
    RunDirectory,
    Workers,
    keep_freed_memory,
    record_gif,
    train,
)
from torchrl_agentmixer.training.evaluation import can_render, check_videos, require_pillow

__all__ = ["ExperimentConfig", "can_resume", "load_run", "prepare", "run"]


def run(
    config: ExperimentConfig, folder: str | Path, *, changed: Sequence[str] = ()
) -> dict[str, float | None]:
    """Train, write a run directory and return the last row of metrics.

    Args:
        config (ExperimentConfig): configuration.
        folder (str or Path): run directory.

    Keyword Args:
        changed (sequence of str): dotted names of fields that change in a resumed run.

    Raises:
        Interrupted: after SIGTERM or SIGINT.
        ValueError: for an unknown option, or a change that a resumed run does not support.
        BlockingIOError: if another process writes to the run directory.
    """
    return prepare(config, folder, changed=changed).train()


def prepare(
    config: ExperimentConfig, folder: str | Path, *, changed: Sequence[str] = ()
) -> PreparedRun:
    """Build and check everything that a run needs; arguments and errors as in :func:`run`."""
    folder = distributed.from_first(lambda: Path(folder))
    resume = distributed.from_first(
        lambda: config.resume is not None or (config.auto_resume and can_resume(folder))
    )
    _check_machine(config)
    keep_freed_memory()
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    num_envs = distributed.share(config.env.num_envs, "env.num_envs")
    seed = distributed.own_seed(config.seed)
    built = replace(config, init_from=None) if resume else config
    if built.init_from is not None:
        check_source(config)
    workers = build_workers(built, num_envs, seed)
    env = build_env(built, num_envs, seed)
    eval_env = build_env(config, config.env.eval_envs, config.seed, like=env)
    torch.manual_seed(config.seed)  # environments may draw random numbers
    algorithm = _algorithm(config, env)
    if built.init_from is not None:
        load_parameters(algorithm, built.init_from)
    check_videos(config.video_interval, eval_env)
    output = _Output(config, folder, resume)
    if distributed.rank() == 0:
        values = config.to_dict() | {"decentralized_execution": algorithm.decentralized_execution}
        output.save_config(values, changed)
    return PreparedRun(config, algorithm, env, eval_env, workers, output)


@dataclass
class PreparedRun:
    """A run that can begin: everything is built, and this process owns the run directory."""

    config: ExperimentConfig
    algorithm: Algorithm
    env: EnvBase
    eval_env: EnvBase
    workers: Workers | None
    output: _Output

    def train(self) -> dict[str, float | None]:
        """Train, and write all results; the last row of metrics."""
        config, output = self.config, self.output
        given = vars(config.env) | vars(config)
        loop = LoopConfig(**{f.name: given[f.name] for f in fields(LoopConfig) if f.name in given})
        hooks: dict[str, Any] = {"workers": self.workers, "on_message": output.bar.log}
        if distributed.rank() == 0:
            hooks |= {"on_start": output.start, "on_metrics": output.show}
        with closing(output):
            if config.plots and not can_render(self.eval_env) and distributed.rank() == 0:
                output.log(f"no animation at the end: {config.env.name} has no `render`")
            trained = self.algorithm, self.env, self.eval_env
            row = train(*trained, loop, output.directory, **hooks)
            if distributed.rank() == 0 and (output.directory.path / "algorithm.pt").exists():
                self.write_results(output.directory.path)
        return row

    def write_results(self, folder: Path) -> None:
        """Write the normalization and the animation of a complete run, unless they are there."""
        parameters = folder / "algorithm.pt"
        normalizer, path = observation_normalizer(self.env), folder / "normalization.pt"
        if normalizer is not None and is_older(path, parameters):
            torch.save(normalizer.state_dict(), path)
        path = folder / "decentralized.gif"
        if self.config.plots and can_render(self.eval_env) and is_older(path, parameters):
            policy, max_steps = self.algorithm.execution_policy, self.config.env.eval_steps
            try:
                record_gif(policy, self.eval_env, path, max_steps=max_steps)
            except RuntimeError as error:  # no display, or no package for it
                self.output.log(f"no animation: {error}")


def is_older(path: Path, other: Path) -> bool:
    """Whether a file is missing, or was written before another one."""
    return not path.exists() or path.stat().st_mtime_ns < other.stat().st_mtime_ns


def _check_machine(config: ExperimentConfig) -> None:
    """Raise an error for a device or a package that is missing here."""
    device = torch.device(config.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"expected `device` to be one of this machine's {torch.cuda.device_count()} CUDA "
            f"devices or 'cpu', got {config.device!r}."
        )
    if config.plots or config.video_interval is not None:
        require_pillow()


class _Output:
    """Run directory, loggers and progress bar."""

    def __init__(self, config: ExperimentConfig, folder: Path, resume: bool) -> None:
        first = distributed.rank() == 0
        loggers = config.logger if first else None
        self.loggers = MetricLoggers(loggers, folder, options=config.logger_options)
        self.bar = ProgressBar(config.env.total_frames, name=str(folder))
        self.directory = RunDirectory(
            folder, resume=resume, writes=first, replaces_empty=config.auto_resume
        )

    def log(self, message: str) -> None:
        self.bar.log(f"{self.directory.path}: {message}")

    def save_config(self, values: dict[str, Any], changed: Sequence[str]) -> None:
        self.values = values
        if not self.directory.resume:
            self.directory.save_config(values)
            return
        try:
            if not can_resume(self.directory.path):
                raise FileNotFoundError(f"{self.directory.path}: no checkpoint to resume from.")
            ignore = (*PER_CALL, *CHANGEABLE, *changed)
            for difference in self.directory.check_config(values, ignore=ignore):
                self.log(f"{difference}; the numbers may differ")
        except Exception:
            self.close()
            raise

    def start(self, frames: int) -> None:
        if self.directory.resume:
            self.directory.change_config(self.values, frames, ignore=PER_CALL)
        self.loggers.start(frames, self.values)
        self.bar.start(frames)

    def show(self, row: dict[str, float | None]) -> None:
        self.loggers.log(row)
        self.bar.update(row)

    def close(self) -> None:
        self.bar.close()
        self.loggers.close()
        self.directory.close()


def build_env(config: ExperimentConfig, num_envs: int, seed: int, like: Any = None) -> EnvBase:
    """Build the environment, with the normalization statistics of ``like``."""
    kwargs, device = config.env.kwargs, config.device
    env = make_env(config.env.name, num_envs=num_envs, device=device, seed=seed, **kwargs)
    if not config.normalize_observations:
        return env
    env = normalize_observations(env, like=like)
    if config.init_from is not None and like is None:
        load_normalization(env, config.init_from)
    return env


def build_workers(config: ExperimentConfig, num_envs: int, seed: int) -> Workers | None:
    """Build worker processes that share ``num_envs`` environments; ``None`` without workers."""
    count = config.collector.num_workers
    if not count:
        return None
    if num_envs % count:
        raise ValueError(
            f"expected `env.num_envs` per rank to be a multiple of {count} workers, got {num_envs}."
        )
    seeds = np.random.SeedSequence([seed, 1]).generate_state(count) >> 1
    functions = [partial(build_env, config, num_envs // count, int(s)) for s in seeds]
    return Workers(env_functions=functions, seed=seed, backend=config.collector.backend)


def _algorithm(config: ExperimentConfig, env: EnvBase) -> Any:
    options = dict(config.algorithm)
    return make_algorithm(options.pop("name"), env, config.env.total_frames, options)


def can_resume(folder: Path) -> bool:
    """Whether a folder contains checkpoints."""
    return (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir())


def load_run(folder: str | Path, *, num_envs: int = 1) -> tuple[Any, EnvBase, ExperimentConfig]:
    """Load a complete run: trained algorithm, ``num_envs`` environments and configuration."""
    config, folder = saved_config(folder), Path(folder)
    like = None
    if config.normalize_observations:
        like = torch.load(folder / "normalization.pt", weights_only=True)
    env = build_env(config, num_envs, config.seed, like=like)
    algorithm = _algorithm(config, env)
    algorithm.load_state_dict(torch.load(folder / "algorithm.pt", weights_only=True))
    return algorithm, env, config
