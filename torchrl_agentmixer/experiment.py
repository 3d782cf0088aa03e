"""Experiments: one training run from one configuration, without Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrl.envs import EnvBase

from torchrl_agentmixer import distributed
from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.config import CHANGEABLE, PER_CALL, ExperimentConfig, saved_config
from torchrl_agentmixer.envs import make_env, normalize_observations, observation_normalizer
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

__all__ = ["ExperimentConfig", "can_resume", "load_run", "run"]


def run(
    config: ExperimentConfig, folder: str | Path, *, changed: Sequence[str] = ()
) -> dict[str, float | None]:
    """Train, and write all results to a run directory; the last row of metrics.

    Args:
        config (ExperimentConfig): configuration.
        folder (str or Path): the run directory.

    Keyword Args:
        changed (sequence of str): dotted names of fields that a resumed run changes.

    Raises:
        Interrupted: after SIGTERM or SIGINT.
        ValueError: for an unknown option, or another change of a resumed run.
    """
    folder = distributed.from_first(lambda: Path(folder))
    resume = distributed.from_first(
        lambda: config.resume is not None or (config.auto_resume and can_resume(folder))
    )
    keep_freed_memory()
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    num_envs = distributed.share(config.env.num_envs, "env.num_envs")
    seed = distributed.own_seed(config.seed)
    workers = build_workers(config, num_envs, seed)
    env = build_env(config, num_envs, seed)
    eval_env = build_env(config, config.env.eval_envs, config.seed, like=env)
    torch.manual_seed(config.seed)  # building an environment may have drawn random numbers
    algorithm = _algorithm(config, env)
    given = vars(config.env) | vars(config)
    loop = LoopConfig(**{f.name: given[f.name] for f in fields(LoopConfig) if f.name in given})
    values = config.to_dict() | {"decentralized_execution": algorithm.decentralized_execution}
    with closing(_Output(config, folder, resume)) as output:
        hooks: dict[str, Any] = {"on_message": output.bar.log}
        if distributed.rank() == 0:
            output.save_config(values, changed)
            hooks |= {"on_start": output.start, "on_metrics": output.show}
        row = train(algorithm, env, eval_env, loop, output.directory, workers=workers, **hooks)
    if distributed.rank() == 0 and (folder / "algorithm.pt").exists():
        normalizer = observation_normalizer(env)
        if normalizer is not None:
            torch.save(normalizer.state_dict(), folder / "normalization.pt")
        if config.plots:
            gif, policy = folder / "decentralized.gif", algorithm.execution_policy
            record_gif(policy, eval_env, gif, max_steps=config.env.eval_steps)
    return row


class _Output:
    """Run directory, loggers and progress bar of a run."""

    def __init__(self, config: ExperimentConfig, folder: Path, resume: bool) -> None:
        first = distributed.rank() == 0
        loggers = config.logger if first else None
        self.loggers = MetricLoggers(loggers, folder, options=config.logger_options)
        self.bar = ProgressBar(config.env.total_frames, name=str(folder))
        self.directory = RunDirectory(folder, resume=resume, writes=first)

    def save_config(self, values: dict[str, Any], changed: Sequence[str]) -> None:
        self.values = values
        if not self.directory.resume:
            self.directory.save_config(values)
            return
        ignore = (*PER_CALL, *CHANGEABLE, *changed)
        for difference in self.directory.check_config(values, ignore=ignore):
            self.bar.log(f"{self.directory.path}: {difference}; the numbers may differ")

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


def build_env(config: ExperimentConfig, num_envs: int, seed: int, like: Any = None) -> EnvBase:
    """The environment; ``like`` gives the statistics of its normalization."""
    kwargs, device = config.env.kwargs, config.device
    env = make_env(config.env.name, num_envs=num_envs, device=device, seed=seed, **kwargs)
    return normalize_observations(env, like=like) if config.normalize_observations else env


def build_workers(config: ExperimentConfig, num_envs: int, seed: int) -> Workers | None:
    """Worker processes that share ``num_envs`` environments; ``None`` without workers."""
    count = config.collector.num_workers
    if not count:
        return None
    if num_envs % count:
        key = "`env.num_envs` per rank"
        raise ValueError(f"expected {key} to be a multiple of {count} workers, got {num_envs}.")
    seeds = np.random.SeedSequence([seed, 1]).generate_state(count) >> 1
    functions = [partial(build_env, config, num_envs // count, int(s)) for s in seeds]
    return Workers(env_functions=functions, seed=seed, backend=config.collector.backend)


def _algorithm(config: ExperimentConfig, env: EnvBase) -> Any:
    options = dict(config.algorithm)
    return make_algorithm(options.pop("name"), env, config.env.total_frames, options)


def can_resume(folder: Path) -> bool:
    """Whether a folder contains checkpoints; removes the empty metrics of a failed start."""
    if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir()):
        return True
    metrics = folder / "metrics.csv"
    if metrics.exists() and not metrics.stat().st_size:
        metrics.unlink()
    return False


def load_run(folder: str | Path, *, num_envs: int = 1) -> tuple[Any, EnvBase, ExperimentConfig]:
    """The trained algorithm of a complete run, ``num_envs`` environments, and the configuration."""
    config, folder = saved_config(folder), Path(folder)
    like = None
    if config.normalize_observations:
        like = torch.load(folder / "normalization.pt", weights_only=True)
    env = build_env(config, num_envs, config.seed, like=like)
    algorithm = _algorithm(config, env)
    algorithm.load_state_dict(torch.load(folder / "algorithm.pt", weights_only=True))
    return algorithm, env, config
