"""Run directory: config, versions, metrics and evaluation episodes of one training run."""

from __future__ import annotations

import csv
import json
import os
import platform
import weakref
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torchrl_agentmixer.training.evaluation import Evaluation
from torchrl_agentmixer.training.run_lock import lock_directory

_PACKAGES = (
    "torchrl_agentmixer",
    "torch",
    "torchrl",
    "tensordict",
    "numpy",
    "vmas",
    "mujoco",
    "gymnasium-robotics",
    "smacv2",
    "jaxmarl",
    "jax",
)


class RunDirectory:
    """Files of one training run; existing results are never overwritten.

    One process at a time writes to the folder, until it ends or calls :meth:`close`
    (:func:`~torchrl_agentmixer.training.run_lock.lock_directory`). An empty ``metrics.csv``
    reserves the folder: of two runs in the same folder, the second one fails before it writes.

    Args:
        path (str or Path): folder, created if missing.

    Keyword Args:
        resume (bool): continue the run in the folder; :func:`train` loads its newest checkpoint.
        writes (bool): write metrics; ``False`` on all ranks but the first.
        replaces_empty (bool): take over an empty ``metrics.csv``, which a failed start left.

    Raises:
        FileNotFoundError: if there is no folder to resume.
        FileExistsError: if the folder contains a run, and ``resume`` is ``False``.
        NotADirectoryError: if the path is a file.
        BlockingIOError: if another process writes to the folder.

    Examples:
        >>> import tempfile
        >>> run = RunDirectory(tempfile.mkdtemp())
        >>> run.log({"frames": 10, "return": 1.5})
        >>> run.metrics_path.read_text().splitlines()
        ['frames,return', '10,1.5']
    """

    def __init__(
        self,
        path: str | Path,
        *,
        resume: bool = False,
        writes: bool = True,
        replaces_empty: bool = False,
    ) -> None:
        self.path = Path(path)
        self.resume = resume
        self.writes = writes
        if resume and not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: expected a run directory, found none.")
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path}: expected a run directory, found a file.")
        self.path.mkdir(parents=True, exist_ok=True)
        self.metrics_path = self.path / "metrics.csv"
        self.episodes_path = self.path / "evaluation.csv"
        self.config_path = self.path / "config.json"
        self._columns: list[str] = []
        self.close: Callable[[], Any] = lambda: None
        if writes:
            self.close = weakref.finalize(self, lock_directory(self.path))
        if writes and not resume:
            self._reserve(replaces_empty)

    def _reserve(self, replaces_empty: bool) -> None:
        metrics = self.metrics_path
        if replaces_empty and metrics.exists() and not metrics.stat().st_size:
            metrics.unlink()
        try:
            if self.episodes_path.exists():
                raise FileExistsError(self.episodes_path)
            self.metrics_path.touch(exist_ok=False)
        except FileExistsError as error:
            self.close()
            raise FileExistsError(
                f"{self.path}: expected an empty run directory, found the results of another run "
                f"or its empty {self.metrics_path.name}. Resume that run, choose another "
                "directory, or remove this one."
            ) from error

    def save_config(self, config: Mapping[str, Any]) -> None:
        """Write the config and the versions of packages as JSON."""
        _write_json(self.config_path, config)
        _write_json(self.path / "versions.json", _versions())

    def saved_config(self) -> dict[str, Any]:
        """The config of the run, as started or last resumed."""
        config = self._config_file()
        config.pop("changes", None)
        return config

    def _config_file(self) -> dict[str, Any]:
        if not self.config_path.exists():
            raise FileNotFoundError(f"{self.config_path}: expected the config of a run.")
        return json.loads(self.config_path.read_text())

    def _differences(self, config: Mapping[str, Any], ignore: Collection[str]) -> dict[str, tuple]:
        """Saved and new value of each field that differs, by dotted name."""
        saved, new = flat_config(self.saved_config()), flat_config(config)
        return {
            key: (saved.get(key), new.get(key))
            for key in sorted(saved.keys() | new.keys())
            if saved.get(key) != new.get(key) and not {key, key.partition(".")[0]} & {*ignore}
        }

    def check_config(self, config: Mapping[str, Any], *, ignore: Collection[str] = ()) -> list[str]:
        """Raise a ``ValueError`` if the config of a resumed run differs from the saved one.

        Keyword Args:
            ignore (collection of str): fields that may differ, top-level or by dotted names.

        Returns:
            list of str: packages whose versions differ.
        """
        differences = self._differences(config, ignore)
        if differences:
            lines = [f"{k}: {old!r} then, {new!r} now" for k, (old, new) in differences.items()]
            raise ValueError(f"{self.path}: expected the saved config:\n" + "\n".join(lines))
        saved = json.loads((self.path / "versions.json").read_text())
        return [
            f"{package} {saved.get(package)} then, {number} now"
            for package, number in _versions().items()
            if saved.get(package) != number
        ]

    def change_config(
        self, config: Mapping[str, Any], frames: int, *, ignore: Collection[str] = ()
    ) -> None:
        """Write the config of a resumed run, and at which frames it changed under ``"changes"``."""
        before = {key: old for key, (old, _) in self._differences(config, ignore).items()}
        if before:
            changes = self._config_file().get("changes", [])
            changes.append({"frames": frames, "before": before})
            _write_json(self.config_path, {**config, "changes": changes})

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Append a row of metrics with the names of the first one; ``None`` is an empty cell."""
        if not self._columns:
            self._columns = list(row)
            self._append(self.metrics_path, self._columns)
        if differing := set(row) ^ set(self._columns):
            raise KeyError(
                f"expected metrics {self._columns}, got {list(row)}: {differing} differ."
            )
        self._append(self.metrics_path, [row[name] for name in self._columns])

    def log_episodes(self, frames: int, evaluation: Evaluation) -> None:
        """Append a row per evaluation episode."""
        columns = evaluation.episode_columns
        if not (self.episodes_path.exists() and self.episodes_path.stat().st_size):
            self._append(self.episodes_path, ["frames", "episode", *columns])
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        for episode, values in enumerate(rows):
            self._append(self.episodes_path, [frames, episode, *values])

    def sizes(self) -> dict[str, int]:
        """Bytes of each table, for :meth:`cut`."""
        tables = (self.metrics_path, self.episodes_path)
        return {path.name: path.stat().st_size if path.exists() else 0 for path in tables}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Remove rows that were logged after a checkpoint; a ``ValueError`` if some are missing."""
        if not self.writes:
            return
        for name, size in self.sizes().items():
            if size < sizes[name]:
                raise ValueError(
                    f"{self.path / name}: expected at least the {sizes[name]} bytes of the "
                    f"checkpoint, got {size}: rows are missing, and the run cannot be resumed."
                )
        for name, size in sizes.items():
            if (self.path / name).exists() and size != self.sizes()[name]:
                os.truncate(self.path / name, size)
        if sizes[self.metrics_path.name]:
            with self.metrics_path.open(newline="") as file:
                self._columns = next(csv.reader(file))

    def _append(self, path: Path, row: list[Any]) -> None:
        if self.writes:
            with path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(
                    ["" if value is None else value for value in row]
                )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(content), indent=2) + "\n")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names.

    Examples:
        >>> flat_config({"env": {"name": "matrix/climbing"}, "seed": 0})
        {'env.name': 'matrix/climbing', 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_config(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
