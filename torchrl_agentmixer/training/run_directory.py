"""What a run leaves behind: config, versions, metrics and evaluation episodes."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torchrl_agentmixer.training.evaluation import Evaluation

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

    The folder is claimed at once, by an empty ``metrics.csv``: of two runs that were sent to the
    same folder at the same time, one is refused.

    Args:
        path (str or Path): created if missing.

    Raises:
        FileExistsError: if the folder already holds metrics, or is claimed.

    Examples:
        >>> import tempfile
        >>> run = RunDirectory(tempfile.mkdtemp())
        >>> run.log({"frames": 10, "return": 1.5})
        >>> run.metrics_path.read_text().splitlines()
        ['frames,return', '10,1.5']
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.metrics_path = self.path / "metrics.csv"
        self.episodes_path = self.path / "evaluation.csv"
        try:
            if self.episodes_path.exists():
                raise FileExistsError(self.episodes_path)
            self.metrics_path.touch(exist_ok=False)
        except FileExistsError as error:
            raise FileExistsError(
                f"{self.path} holds the results of another run, or its claim, an empty "
                f"{self.metrics_path.name}, and is left as it is: expected an empty run "
                "directory. Name another one, or remove what a run left that failed at its start."
            ) from error
        self._columns: list[str] = []

    def save_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config and the versions it ran with, as JSON."""
        versions = {"python": platform.python_version()}
        for package in _PACKAGES:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = "not installed"
        (self.path / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
        (self.path / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Append one row of metrics; ``None`` is an empty cell.

        Raises:
            KeyError: if the row's names are not those of the first row.
        """
        if not self._columns:
            self._columns = list(row)
            self._append(self.metrics_path, self._columns)
        if set(row) != set(self._columns):
            raise KeyError(
                f"expected metrics {self._columns}, got {list(row)}: "
                f"{sorted(set(row) ^ set(self._columns))} differ."
            )
        self._append(self.metrics_path, [row[name] for name in self._columns])

    def log_episodes(self, frames: int, evaluation: Evaluation) -> None:
        """Append one row for each evaluation episode."""
        if not self.episodes_path.exists():
            self._append(self.episodes_path, ["frames", "episode", *evaluation.episode_columns])
        columns = (values.tolist() for values in evaluation.episode_columns.values())
        for episode, values in enumerate(zip(*columns, strict=True)):
            self._append(self.episodes_path, [frames, episode, *values])

    @staticmethod
    def _append(path: Path, row: list[Any]) -> None:
        with path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(
                ["" if value is None else value for value in row]
            )
