"""Experiments: one training run from one configuration, without Hydra."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torchrl.envs import EnvBase

from torchrl_agentmixer import distributed
from torchrl_agentmixer._choices import unknown_name
from torchrl_agentmixer.algorithms import default_options, make_algorithm
from torchrl_agentmixer.envs import make_env, normalize_observations, observation_normalizer
from torchrl_agentmixer.training import (
    EarlyStopping,
    LoopConfig,
    MetricLoggers,
    ProgressBar,
    RunDirectory,
    Workers,
    keep_freed_memory,
    record_gif,
    train,
)

# Fields that a resumed run may change: read at each call, or kept unless they are given.
PER_CALL = ("auto_resume", "max_time", "num_threads", "plots", "resume", "runs")
CHANGEABLE = ("collector", "early_stopping", "logger", "logger_options", "video_interval")


@dataclass(kw_only=True)
class EnvConfig:
    """An environment, and the length of training and evaluation in it.

    Args:
        name: of :func:`~torchrl_agentmixer.envs.available_envs`.
        num_envs: number of environments in training.
        total_frames: environment steps of training.
        frames_per_batch: environment steps of a batch.
        eval_interval: environment steps between evaluations.
        eval_envs: number of evaluation episodes.
        eval_steps: time limit of evaluation episodes.
        kwargs: options of the environment.
    """

    name: str
    num_envs: int
    total_frames: int
    frames_per_batch: int
    eval_interval: int
    eval_envs: int
    eval_steps: int
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class CollectorConfig:
    """Worker processes that collect (0: the training process), by multiprocessing or Ray."""

    num_workers: int = 0
    backend: Literal["multiprocessing", "ray"] = "multiprocessing"


@dataclass(kw_only=True)
class ExperimentConfig:
    """Configuration of one training run.

    Args:
        env: environment and length of training.
        algorithm: ``"name"``, of :func:`~torchrl_agentmixer.algorithms.available_algorithms`, and
            the hyperparameters that differ from its defaults.
        seed: seed of the run.
        device: of the environments and networks.
        collector: processes that collect.
        normalize_observations: normalize observations and state by running statistics.
        num_threads: threads of one process.
        checkpoint_interval: frames between checkpoints; ``None`` for no checkpoints.
        keep_checkpoints, max_time, video_interval, early_stopping: as in :class:`LoopConfig`.
        logger: names of :class:`MetricLoggers`.
        logger_options: keyword arguments of TorchRL's loggers by name.
        plots: write an animation of an episode at the end (``examples/train.py``: plots as well).
        runs: root of the run directories of ``examples/train.py``.
        resume: run directory to resume.
        auto_resume: resume the run in the folder if it has checkpoints.

    Examples:
        >>> import tempfile
        >>> env = {"name": "matrix/climbing", "num_envs": 10, "total_frames": 40, "eval_envs": 1}
        >>> env |= {"frames_per_batch": 20, "eval_interval": 40, "eval_steps": 1}
        >>> values = {"env": env, "algorithm": {"name": "mappo"}, "num_threads": 1, "plots": False}
        >>> run(ExperimentConfig.from_dict(values), tempfile.mkdtemp())["frames"]
        40
    """

    env: EnvConfig
    algorithm: dict[str, Any]
    seed: int = 0
    device: str = "cpu"
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    normalize_observations: bool = False
    num_threads: int = 2
    checkpoint_interval: int | Literal["eval_interval"] | None = "eval_interval"
    keep_checkpoints: int = LoopConfig.keep_checkpoints
    max_time: float | None = LoopConfig.max_time
    video_interval: int | None = LoopConfig.video_interval
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    logger: str | list[str] | None = None
    logger_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    plots: bool = True
    runs: str = "runs"
    resume: str | None = None
    auto_resume: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint_interval == "eval_interval":
            self.checkpoint_interval = self.env.eval_interval

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExperimentConfig:
        """Build a configuration from nested plain values; a ``ValueError`` for unknown fields."""
        parts = {"env": EnvConfig, "collector": CollectorConfig, "early_stopping": EarlyStopping}
        nested = {k: _checked(parts[k], values[k], f"{k}.") for k in parts if k in values}
        return _checked(cls, {**values, **nested}, "")

    def to_dict(self) -> dict[str, Any]:
        """All values as JSON represents them, with all hyperparameters of the algorithm."""
        name = self.algorithm["name"]
        algorithm = {"name": name, **default_options(name), **self.algorithm}
        return json.loads(json.dumps(asdict(self) | {"algorithm": algorithm}))


def _checked(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    known = [f.name for f in fields(cls)]
    for name in values:
        if name not in known:
            raise ValueError(unknown_name("field", prefix + name, [prefix + k for k in known]))
    return cls(**values)


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
        self.bar = ProgressBar(config.env.total_frames)
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


def saved_config(folder: str | Path) -> ExperimentConfig:
    """The configuration of the run in a folder."""
    values = RunDirectory(folder, resume=True, writes=False).saved_config()
    values.pop("decentralized_execution", None)
    return ExperimentConfig.from_dict(values)


def resumed_config(config: ExperimentConfig, changed: Sequence[str]) -> ExperimentConfig:
    """The saved configuration of ``config.resume`` with the ``changed`` fields of ``config``."""
    values, given = saved_config(config.resume or "").to_dict(), config.to_dict()
    allowed = (*PER_CALL, *CHANGEABLE)
    for name in changed:
        if name.partition(".")[0] not in allowed and not name.startswith("algorithm."):
            raise ValueError(
                f"{config.resume}: {name!r} cannot change when a run is resumed; expected fields "
                f"of algorithm, or {', '.join(allowed)}."
            )
    for name in (*PER_CALL, *changed):
        *path, leaf = name.split(".")
        target, source = values, given
        for part in path:
            target, source = target.setdefault(part, {}), source[part]
        target[leaf] = source[leaf]
    return ExperimentConfig.from_dict(values)


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
