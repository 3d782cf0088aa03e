"""Configuration of a training run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch

from torchrl_agentmixer._choices import check_known, check_values
from torchrl_agentmixer._fields import check_fields
from torchrl_agentmixer.algorithms import resolved_options
from torchrl_agentmixer.training import EarlyStopping, LoopConfig, RunDirectory

# Fields that a resumed run may change: PER_CALL come from each call, CHANGEABLE only if given.
PER_CALL = ("auto_resume", "max_time", "resume", "runs")
CHANGEABLE = (
    "collector",
    "early_stopping",
    "logger",
    "logger_options",
    "num_threads",
    "plots",
    "video_interval",
)
# Intervals of numbers.
_RANGES = {
    **dict.fromkeys(("num_envs", "total_frames", "frames_per_batch", "eval_interval"), "[1, inf)"),
    **dict.fromkeys(("eval_envs", "eval_steps", "num_threads", "keep_checkpoints"), "[1, inf)"),
    **dict.fromkeys(("checkpoint_interval", "video_interval"), "[1, inf)"),
    "num_workers": "[0, inf)",
    "max_time": "(0, inf]",
    "seed": f"[0, {2**63})",
}


@dataclass(kw_only=True)
class EnvConfig:
    """Configuration of the environment and of the length of training and evaluation.

    Args:
        name: one of :func:`~torchrl_agentmixer.envs.available_envs`.
        num_envs: number of parallel environments.
        total_frames: environment steps of training.
        frames_per_batch: environment steps per batch, a multiple of ``num_envs``.
        eval_interval: environment steps between evaluations, at most ``total_frames``.
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

    def __post_init__(self) -> None:
        check_fields(self, _RANGES)
        batch, envs, interval = self.frames_per_batch, self.num_envs, self.eval_interval
        total = self.total_frames
        check_values(
            "EnvConfig",
            frames_per_batch=(batch, batch % envs == 0, f"to be a multiple of `num_envs` {envs}"),
            eval_interval=(interval, interval <= total, f"<= `total_frames` {total}"),
        )


@dataclass(kw_only=True)
class CollectorConfig:
    """Number of worker processes for collection (0: the training process) and their backend."""

    num_workers: int = 0
    backend: Literal["multiprocessing", "ray"] = "multiprocessing"

    def __post_init__(self) -> None:
        check_fields(self, _RANGES)


@dataclass(kw_only=True)
class ExperimentConfig:
    """Configuration of one training run.

    Args:
        env: environment and length of training.
        algorithm: ``"name"``, one of :func:`~torchrl_agentmixer.algorithms.available_algorithms`,
            and hyperparameters that differ from its defaults.
        seed: random seed.
        device: device of environments and networks.
        collector: worker processes.
        normalize_observations: normalize observations and state by running statistics.
        num_threads: threads per process; more than one helps large networks on free cores.
        checkpoint_interval: frames between checkpoints; ``None`` for no checkpoints.
        keep_checkpoints, max_time, video_interval, early_stopping: as in :class:`LoopConfig`.
        logger: names of :class:`MetricLoggers`.
        logger_options: keyword arguments of TorchRL's loggers by name.
        plots: write an animation of an episode (``examples/train.py``: and plots) at the end.
        runs: root of the run directories of ``examples/train.py``.
        init_from: run directory whose parameters training starts with, and whose normalization of
            observations: of the same method, with the same sizes.
        resume: run directory to resume.
        auto_resume: resume the run if its folder has checkpoints.

    Examples:
        >>> import tempfile
        >>> env = {"name": "matrix/climbing", "num_envs": 10, "total_frames": 40, "eval_envs": 1}
        >>> env |= {"frames_per_batch": 20, "eval_interval": 40, "eval_steps": 1}
        >>> values = {"env": env, "algorithm": {"name": "mappo"}, "num_threads": 1, "plots": False}
        >>> from torchrl_agentmixer.experiment import run
        >>> run(ExperimentConfig.from_dict(values), tempfile.mkdtemp())["frames"]
        40
    """

    env: EnvConfig
    algorithm: dict[str, Any]
    seed: int = 0
    device: str = "cpu"
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    normalize_observations: bool = False
    num_threads: int = 1
    checkpoint_interval: int | Literal["eval_interval"] | None = "eval_interval"
    keep_checkpoints: int = LoopConfig.keep_checkpoints
    max_time: float | None = LoopConfig.max_time
    video_interval: int | None = LoopConfig.video_interval
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    logger: str | list[str] | None = None
    logger_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    plots: bool = True
    runs: str = "runs"
    init_from: str | None = None
    resume: str | None = None
    auto_resume: bool = False

    def __post_init__(self) -> None:
        check_fields(self, _RANGES)
        if self.checkpoint_interval == "eval_interval":
            self.checkpoint_interval = self.env.eval_interval
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"ExperimentConfig: `device`: {error}") from error
        if "name" not in self.algorithm:
            raise ValueError(f"ExperimentConfig: expected `algorithm.name`, got {self.algorithm}.")
        _check_batches(self.env, self.to_dict()["algorithm"])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExperimentConfig:
        """Build a configuration from a nested mapping; raise a ValueError for unknown fields."""
        parts = {"env": EnvConfig, "collector": CollectorConfig, "early_stopping": EarlyStopping}
        nested = {k: _checked(parts[k], values[k], f"{k}.") for k in parts if k in values}
        return _checked(cls, {**values, **nested}, "")

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON-compatible values, with all hyperparameters of the algorithm."""
        options = dict(self.algorithm)
        name = options.pop("name")
        algorithm = {"name": name, **resolved_options(name, options)}
        return json.loads(json.dumps(asdict(self) | {"algorithm": algorithm}))


def _check_batches(env: EnvConfig, algorithm: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` if a batch does not divide into sequences and minibatches."""
    steps, length = env.frames_per_batch // env.num_envs, 1
    if algorithm.get("memory_dim"):
        length = algorithm["sequence_length"]
        valid = steps % length == 0
        kind = f"to divide the {steps} steps of a batch (`frames_per_batch` / `num_envs`)"
        check_values("algorithm", sequence_length=(length, valid, kind))
    samples, count = env.frames_per_batch // length, algorithm.get("num_minibatches", 1)
    kind = f"<= {samples}, the samples of a batch (`frames_per_batch`)"
    check_values("algorithm", num_minibatches=(count, count <= samples, kind))


def _checked(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise TypeError(f"expected `{prefix.rstrip('.')}` to be a mapping, got {values!r}.")
    known = [f.name for f in fields(cls)]
    check_known("field", [prefix + name for name in values], [prefix + name for name in known])
    return cls(**values)


def saved_config(folder: str | Path) -> ExperimentConfig:
    """The configuration in a run directory."""
    values = RunDirectory(folder, resume=True, writes=False).saved_config()
    values.pop("decentralized_execution", None)
    return ExperimentConfig.from_dict(values)


def resumed_config(given: Mapping[str, Any], changed: Sequence[str]) -> ExperimentConfig:
    """The saved configuration of the run ``given["resume"]`` with the ``changed`` fields.

    Args:
        given (mapping): fields of :class:`ExperimentConfig` as nested plain values.
        changed (sequence of str): dotted names of the fields that replace the saved ones.

    Raises:
        ValueError: for a field that cannot change, or fewer ``env.total_frames``.
    """
    folder = given["resume"]
    values = saved_config(folder).to_dict()
    allowed = (*PER_CALL, *CHANGEABLE, "env.total_frames")
    for name in changed:
        if not {name, name.partition(".")[0]} & {*allowed} and not name.startswith("algorithm."):
            raise ValueError(
                f"{folder}: {name!r} cannot change when a run is resumed; expected fields "
                f"of algorithm, or {', '.join(allowed)}."
            )
    before = values["env"]["total_frames"]
    for name in (*PER_CALL, *changed):
        *path, leaf = name.split(".")
        target, source = values, given
        for part in path:
            target, source = target.setdefault(part, {}), source[part]
        if leaf in source:
            target[leaf] = source[leaf]
    config = ExperimentConfig.from_dict(values)
    if config.env.total_frames < before:
        raise ValueError(
            f"{folder}: expected `env.total_frames` >= {before} as before, got "
            f"{config.env.total_frames}."
        )
    return config
