"""Run directories of a study: read, named, and checked to be comparable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_agentmixer.algorithms import default_options
from torchrl_agentmixer.reporting.tables import read_metrics

# What must agree among the runs of a task: of the environment's config, and of the versions.
_TASK_KEYS = ("name", "kwargs", "total_frames", "eval_interval", "eval_envs", "eval_steps")
_SIMULATORS = {
    "vmas": ("vmas",),
    "mamujoco": ("mujoco", "gymnasium-robotics"),
    "smacv2": ("smacv2",),
    "smax": ("jaxmarl", "jax"),
}
UNFINISHED = ".unfinished"
UNKNOWN = "not installed"


@dataclass(frozen=True)
class Run:
    """One complete run directory.

    Args:
        path: of the folder.
        task: what tables call its environment.
        method: what tables call its method.
        config: ``config.json``, with ``"env"``, ``"algorithm"`` and ``"seed"``.
        versions: ``versions.json``.
        metrics: columns of ``metrics.csv``.
    """

    path: Path
    task: str
    method: str
    config: dict[str, Any]
    versions: dict[str, str]
    metrics: dict[str, list[float | None]]

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.config["seed"]

    @property
    def total_frames(self) -> int:
        """The budget, in environment steps."""
        return self.config["env"]["total_frames"]

    def curve(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Frames and values of a column, each ``[evaluations]``, where it is not empty.

        Raises:
            ValueError: for a column that the run does not have.
        """
        if column not in self.metrics:
            have = sorted(name for name in self.metrics if name.startswith("eval"))
            raise ValueError(
                f"{self.path}: expected a column {column!r} in metrics.csv, got {have}. "
                "Choose another metric."
            )
        points = [
            (frames, value)
            for frames, value in zip(self.metrics["frames"], self.metrics[column], strict=True)
            if value is not None
        ]
        if not points:
            raise ValueError(f"{self.path}: expected an evaluation with {column!r}, got none.")
        frames, values = np.array(points, dtype=float).reshape(-1, 2).T
        return frames, values

    def final(self, column: str) -> float:
        """The last evaluation."""
        return float(self.curve(column)[1][-1])


def read_runs(folder: str | Path) -> list[Run]:
    """All run directories under ``folder``, checked by :func:`check_comparable`.

    The folders above a run name it, as ``examples/train.py`` and ``benchmarks/study.py`` lay them
    out: ``<task>/<method>/<run>``. Where there are fewer, the config's names stand in. Folders
    whose names end with ``.unfinished`` are runs that go on, and are left out.

    Args:
        folder (path): holds run directories, at any depth.

    Raises:
        FileNotFoundError: for a folder that does not exist.
        ValueError: for a folder without runs, files that are damaged or half-written, or runs that
            cannot be compared.

    Examples:
        >>> import json, tempfile
        >>> from torchrl_agentmixer.training import RunDirectory
        >>> root = Path(tempfile.mkdtemp())
        >>> run = RunDirectory(root / "climbing" / "mappo" / "seed_0")
        >>> env = {"name": "matrix/climbing", "kwargs": {}, "total_frames": 10}
        >>> run.save_config({"env": env, "algorithm": {"name": "mappo"}, "seed": 0})
        >>> run.log({"frames": 10, "eval_score": 7.0})
        >>> [(run.task, run.method, run.seed) for run in read_runs(root)]
        [('climbing', 'mappo', 0)]
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: expected a folder of run directories.")
    paths = sorted(path.parent for path in folder.rglob("config.json"))
    paths = [
        path
        for path in paths
        if not any(part.endswith(UNFINISHED) for part in path.relative_to(folder).parts)
    ]
    if not paths:
        raise ValueError(
            f"{folder}: expected run directories, with the config.json and metrics.csv that "
            "examples/train.py leaves, got none."
        )
    runs = [_read(path, folder) for path in paths]
    check_comparable(runs)
    return runs


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that one table must not mix.

    Runs of a task have one environment, with the same options, simulator versions, budget and
    evaluation; runs of a method in a task the same hyperparameters and different seeds; runs of a
    method the same algorithm; and all are complete.

    Raises:
        ValueError: naming two runs and what differs, or the run that is not complete.
    """
    for run in runs:
        frames = run.metrics.get("frames") or [0]
        last = frames[-1] or 0
        if last < run.total_frames and (run.path / "algorithm.pt").exists():
            raise ValueError(
                f"{run.path}: expected a complete run of {run.total_frames} frames, got "
                f"{last:.0f}: it stopped early, and its last evaluation is not of the same budget. "
                "Go on without early stopping, by examples/train.py resume=<run> "
                "early_stopping.target=null early_stopping.patience=null, or move it out of the "
                "folder."
            )
        if last < run.total_frames:
            raise ValueError(
                f"{run.path}: expected a complete run of {run.total_frames} frames, got "
                f"{last:.0f}. Let it finish, or move it out of the folder."
            )
    tasks: dict[str, Run] = {}
    methods: dict[str, Run] = {}
    cells: dict[tuple[str, str], Run] = {}
    seeds: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        first = tasks.setdefault(run.task, run)
        for key in _TASK_KEYS:
            _same(f"env.{key}", first, run, *(r.config["env"].get(key) for r in (first, run)))
        simulator = str(run.config["env"]["name"]).split("/")[0]
        for package in ("torchrl_agentmixer", *_SIMULATORS.get(simulator, ())):
            versions = [r.versions.get(package, UNKNOWN) for r in (first, run)]
            if UNKNOWN not in versions:  # code that was not installed does not say which it is
                _same(f"the version of {package}", first, run, *versions)
        first = methods.setdefault(run.method, run)
        _same("algorithm.name", first, run, *(r.config["algorithm"]["name"] for r in (first, run)))
        first = cells.setdefault((run.task, run.method), run)
        options = _options(first), _options(run)
        for key in sorted(options[0].keys() | options[1].keys()):
            _same(f"algorithm.{key}", first, run, *(by_name.get(key) for by_name in options))
        first = seeds.setdefault((run.task, run.method, run.seed), run)
        if first is not run:
            raise ValueError(
                f"expected each seed once, got seed {run.seed} of {run.method!r} on {run.task!r} "
                f"twice: {first.path} and {run.path}. Move one of them out of the folder."
            )


def _options(run: Run) -> dict[str, Any]:
    """Hyperparameters of a run; what an older config does not name has its default."""
    written = run.config["algorithm"]
    return json.loads(json.dumps(default_options(written["name"]) | written))


def _same(what: str, first: Run, run: Run, expected: Any, actual: Any) -> None:
    if expected != actual:
        raise ValueError(
            f"expected runs of {run.method!r} on {run.task!r} that agree with those beside them, "
            f"got {what} {expected!r} in {first.path} and {actual!r} in {run.path}. Lay them out "
            "as <task>/<method>/<run>, with a name for each, or report on them apart."
        )


def _read(path: Path, root: Path) -> Run:
    config, versions = _read_json(path / "config.json"), _read_json(path / "versions.json")
    try:
        names = config["env"]["name"], config["algorithm"]["name"]
        _ = config["seed"], config["env"]["total_frames"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path / 'config.json'}: expected `env.name`, `env.total_frames`, `algorithm.name` "
            f"and `seed`, got no {error}."
        ) from error
    above = path.relative_to(root).parts[:-1]
    return Run(
        path=path,
        task=above[-2] if len(above) > 1 else names[0],
        method=above[-1] if above else names[1],
        config=config,
        versions=versions,
        metrics=read_metrics(path),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent}: expected the {path.name} of a run directory, got none."
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got {error}.") from error
