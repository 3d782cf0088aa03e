"""Run directories: reading them, naming them, and checking that they can be compared."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Keys of the environment's config, and packages by simulator, that must agree within a task.
_TASK_KEYS = ("name", "kwargs", "total_frames", "eval_interval", "eval_envs", "eval_steps")
_SIMULATORS = {
    "vmas": ("vmas",),
    "mamujoco": ("mujoco", "gymnasium-robotics"),
    "smacv2": ("smacv2",),
    "smax": ("jaxmarl", "jax"),
}
UNFINISHED = ".unfinished"
_NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Run:
    """One complete run directory.

    Args:
        path: the run directory.
        task: name of the environment in tables.
        method: name of the method in tables.
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
        """Random seed of the run."""
        return self.config["seed"]

    @property
    def total_frames(self) -> int:
        """Budget in environment steps."""
        return self.config["env"]["total_frames"]

    @property
    def decentralized_execution(self) -> bool | None:
        """Whether agents execute on their own observations; ``None``: not in the config."""
        return self.config.get("decentralized_execution")

    def joint_column(self, metric: str) -> str:
        """Column of the joint policy; of the executed policy if the method has no joint policy."""
        joint = f"eval_joint_{metric}"
        return joint if joint in self.metrics else f"eval_{metric}"

    def curve(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Frames and values of the cells of a column that are not empty, each ``[evaluations]``.

        Raises:
            ValueError: for a column that ``metrics.csv`` does not have.
        """
        if column not in self.metrics:
            have = sorted(name for name in self.metrics if name.startswith("eval"))
            raise ValueError(
                f"{self.path}: expected a column {column!r} in metrics.csv, got {have}. "
                "Choose another metric."
            )
        pairs = zip(self.metrics["frames"], self.metrics[column], strict=True)
        points = [pair for pair in pairs if pair[1] is not None]
        if not points:
            raise ValueError(f"{self.path}: expected an evaluation with {column!r}, got none.")
        frames, values = np.array(points, dtype=float).T
        return frames, values

    def final(self, column: str) -> float:
        """Value of the last evaluation."""
        return float(self.curve(column)[1][-1])


def read_metrics(run: str | Path) -> dict[str, list[float | None]]:
    """Read the columns of a run's ``metrics.csv``; empty cells are ``None``.

    Raises:
        FileNotFoundError: if the folder has no ``metrics.csv``.
        ValueError: for a file without rows, a truncated row, or a cell that is not a number.

    Examples:
        >>> import tempfile
        >>> from torchrl_agentmixer.training import RunDirectory
        >>> run = RunDirectory(tempfile.mkdtemp())
        >>> run.log({"frames": 10, "return": None})
        >>> read_metrics(run.path)
        {'frames': [10.0], 'return': [None]}
    """
    path = Path(run) / "metrics.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected the folder of a training run.")
    text = path.read_text()
    names, *lines = list(csv.reader(text.splitlines())) or [[]]
    if not lines:
        raise ValueError(f"{path}: expected a header and rows of metrics, got {text[:80]!r}.")
    if not text.endswith("\n") or len(lines[-1]) != len(names):
        raise ValueError(
            f"{path}: expected complete lines of {len(names)} cells, got a truncated last line "
            f"{text.splitlines()[-1][-80:]!r}. The run stopped while it wrote this line: remove "
            "the line or the run."
        )
    try:
        rows = [
            dict(zip(names, (float(cell) if cell else None for cell in line), strict=True))
            for line in lines
        ]
    except ValueError as error:
        raise ValueError(
            f"{path}: expected lines of {len(names)} numbers or empty cells, got {error}."
        ) from error
    return {name: [row[name] for row in rows] for name in names}


def read_runs(folder: str | Path) -> list[Run]:
    """Read all run directories under ``folder`` and check them with :func:`check_comparable`.

    The folders above a run name it: ``<task>/<method>/<run>``, the layout of ``examples/train.py``
    and ``benchmarks/study.py``. Where there are fewer folders, the names in ``config.json`` are
    used. Folders whose names end with ``.unfinished`` are skipped.

    Args:
        folder (path): contains run directories, at any depth.

    Raises:
        FileNotFoundError: for a folder that does not exist.
        ValueError: for a folder without runs, damaged or truncated files, or runs that cannot be
            compared.

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
    paths = [
        path.parent
        for path in sorted(folder.rglob("config.json"))
        if not any(part.endswith(UNFINISHED) for part in path.relative_to(folder).parts)
    ]
    if not paths:
        raise ValueError(
            f"{folder}: expected run directories with the config.json and metrics.csv that "
            "examples/train.py writes, got none."
        )
    runs = [_read(path, folder) for path in paths]
    check_comparable(runs)
    return runs


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise an error for runs that must not be in one table.

    Runs of a task must have the same environment, options, simulator versions, budget and
    evaluation. Runs of a method must have the same algorithm and, within a task, the same
    hyperparameters and different seeds. Every run must be complete.

    Raises:
        ValueError: names two runs and the difference, or the incomplete run.
    """
    seen: dict[tuple, tuple[Run, dict[str, Any]]] = {}
    for run in runs:
        _check_complete(run)
        env, options = run.config["env"], run.config["algorithm"]
        simulator = str(env["name"]).split("/")[0]
        known = {
            f"the version of {package}": run.versions[package]
            for package in ("torchrl_agentmixer", *_SIMULATORS.get(simulator, ()))
            if run.versions.get(package, _NOT_INSTALLED) != _NOT_INSTALLED
        }
        of_task = {f"env.{key}": env.get(key) for key in _TASK_KEYS}
        for group, values in {
            ("task", run.task): of_task,
            ("versions", run.task): known,
            ("method", run.method): {"algorithm.name": options["name"]},
            (run.task, run.method): {f"algorithm.{key}": value for key, value in options.items()},
        }.items():
            first, expected = seen.setdefault(group, (run, values))
            shared = expected.keys() & values.keys()
            for what in sorted(
                shared if group[0] == "versions" else expected.keys() | values.keys()
            ):
                if expected.get(what) != values.get(what):
                    raise ValueError(
                        f"expected the runs of {run.method!r} on {run.task!r} to agree, got {what} "
                        f"{expected.get(what)!r} in {first.path} and {values.get(what)!r} in "
                        f"{run.path}. Use the layout <task>/<method>/<run> with one name per task "
                        "and method, or make separate reports."
                    )
        first, _ = seen.setdefault((run.task, run.method, run.seed), (run, {}))
        if first is not run:
            raise ValueError(
                f"expected each seed once, got seed {run.seed} of {run.method!r} on {run.task!r} "
                f"twice: {first.path} and {run.path}. Move one of them out of the folder."
            )


def _check_complete(run: Run) -> None:
    last = (run.metrics.get("frames") or [0])[-1] or 0
    if last < run.total_frames:
        hint = "Let it finish"
        if (run.path / "algorithm.pt").exists():
            hint = (
                "Early stopping ended it. Resume it without early stopping (examples/train.py "
                "resume=<run> early_stopping.target=null early_stopping.patience=null)"
            )
        raise ValueError(
            f"{run.path}: expected a complete run of {run.total_frames} frames, got {last:.0f}. "
            f"{hint}, or move it out of the folder."
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
