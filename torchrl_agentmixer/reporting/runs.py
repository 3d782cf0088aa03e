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
    """One complete run directory: the content of its files, and its names in tables."""

    path: Path
    task: str
    method: str
    config: dict[str, Any]
    versions: dict[str, str]
    metrics: dict[str, list[float | None]]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def total_frames(self) -> int:
        return self.config["env"]["total_frames"]

    @property
    def decentralized_execution(self) -> bool | None:
        """Whether agents execute on their own observations; ``None`` if the config does not say."""
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
            raise ValueError(f"{self.path}: expected {column!r} in metrics.csv, got {have}.")
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
    try:
        rows = [[float(cell) if cell else None for cell in line] for line in lines]
        if not rows or {len(row) for row in rows} != {len(names)} or not text.endswith("\n"):
            raise ValueError(f"{len(rows)} lines, the last one truncated")
    except ValueError as error:
        raise ValueError(
            f"{path}: expected a header and complete lines of {len(names)} numbers or empty cells, "
            f"got {error}: {text[-80:]!r}. Remove the line or the run."
        ) from error
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


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
        raise ValueError(f"{folder}: expected run directories with a config.json, got none.")
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
        last = (run.metrics.get("frames") or [0])[-1] or 0
        if last < run.total_frames:
            hint = ". Let it finish"
            if (run.path / "algorithm.pt").exists():
                hint = ": it stopped early. Resume it without early_stopping"
            raise ValueError(
                f"{run.path}: expected a complete run of {run.total_frames} frames, got "
                f"{last:.0f}{hint}, or move it out of the folder."
            )
        env, options = run.config["env"], run.config["algorithm"]
        simulator = str(env["name"]).split("/")[0]
        packages = ("torchrl_agentmixer", *_SIMULATORS.get(simulator, ()))
        for group, values in {
            ("env.", run.task): {key: env.get(key) for key in _TASK_KEYS},
            ("version of ", run.task): {p: run.versions.get(p, _NOT_INSTALLED) for p in packages},
            ("algorithm.", run.method): {"name": options["name"]},
            ("algorithm.", run.method, run.task): options,
        }.items():
            first, expected = seen.setdefault(group, (run, values))
            for key in sorted(expected.keys() | values.keys()):
                what, both = f"{group[0]}{key}", (expected.get(key), values.get(key))
                if both[0] != both[1] and _NOT_INSTALLED not in both:
                    raise ValueError(
                        f"expected equal {what} in the runs of {run.method!r} on {run.task!r}, got "
                        f"{both[0]!r} in {first.path} and {both[1]!r} in {run.path}. Use one "
                        "folder per task and method, or separate reports."
                    )
        first, _ = seen.setdefault(("seed", run.task, run.method, run.seed), (run, {}))
        if first is not run:
            raise ValueError(
                f"expected each seed once, got seed {run.seed} of {run.method!r} on {run.task!r} "
                f"twice: {first.path} and {run.path}. Move one of them out of the folder."
            )


def _read(path: Path, root: Path) -> Run:
    config, versions = _read_json(path / "config.json"), _read_json(path / "versions.json")
    try:
        task, method = config["env"]["name"], config["algorithm"]["name"]
        _ = config["seed"], config["env"]["total_frames"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path / 'config.json'}: expected `env.name`, `env.total_frames`, `algorithm.name` "
            f"and `seed`, got no {error}."
        ) from error
    above = path.relative_to(root).parts[:-1]
    task, method = above[-2:] if len(above) > 1 else (task, *(above or (method,)))
    return Run(path, task, method, config, versions, read_metrics(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected JSON of a run directory, got {error}.") from error
