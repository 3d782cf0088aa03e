"""What a run leaves behind: config, versions, metrics and evaluation episodes."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torchrl_agentmixer import distributed
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


_MISSING = object()


class RunDirectory:
    """Files of one training run; existing results are never overwritten.

    The folder is claimed at once, by an empty ``metrics.csv``: of two runs that were sent to the
    same folder at the same time, one is refused. Of several ranks, the first alone writes.

    Args:
        path (str or Path): created if missing.

    Keyword Args:
        resume (bool): go on with the run that the folder holds; :func:`train` takes its newest
            checkpoint.

    Raises:
        FileNotFoundError: if there is no folder to resume.
        FileExistsError: if the folder already holds metrics, or is claimed, and is not resumed.

    Examples:
        >>> import tempfile
        >>> run = RunDirectory(tempfile.mkdtemp())
        >>> run.log({"frames": 10, "return": 1.5})
        >>> run.metrics_path.read_text().splitlines()
        ['frames,return', '10,1.5']
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self.resume = resume
        self._writes = distributed.rank() == 0
        if resume and not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} is no directory: expected that of a run.")
        self.path.mkdir(parents=True, exist_ok=True)
        self.metrics_path = self.path / "metrics.csv"
        self.episodes_path = self.path / "evaluation.csv"
        if self._writes and not resume:
            self._claim()
        self._columns: list[str] = []

    def _claim(self) -> None:
        try:
            if self.episodes_path.exists():
                raise FileExistsError(self.episodes_path)
            self.metrics_path.touch(exist_ok=False)
        except FileExistsError as error:
            raise FileExistsError(
                f"{self.path} holds the results of another run, or its claim, an empty "
                f"{self.metrics_path.name}, and is left as it is: expected an empty run "
                "directory. Resume it, name another one, or remove what a run left that failed "
                "at its start."
            ) from error

    def save_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config and the versions it ran with, as JSON."""
        (self.path / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
        (self.path / "versions.json").write_text(json.dumps(_versions(), indent=2) + "\n")

    def saved_config(self) -> dict[str, Any]:
        """The config that the run was begun with, or last went on with.

        Raises:
            FileNotFoundError: if the folder holds no run.
        """
        config = self._written_config()
        config.pop("changes", None)
        return config

    def _written_config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: expected the directory of a run that was begun here."
            )
        return json.loads(path.read_text())

    def check_config(self, config: Mapping[str, Any], *, free: Collection[str] = ()) -> list[str]:
        """Compare the config of a continuation with that of the run, and the versions.

        Args:
            config (mapping): of the continuation.

        Keyword Args:
            free (collection of str): fields that may differ, top-level or by dotted names.

        Returns:
            list of str: packages that have another version now; the numbers may differ then.

        Raises:
            ValueError: if other fields differ, with both values of each.
        """
        before, now = (
            {k: v for k, v in flat_config(c).items() if not {k, k.partition(".")[0]} & {*free}}
            for c in (self.saved_config(), config)
        )
        differ = [
            f"{key}: {before.get(key, 'missing')!r} then, {now.get(key, 'missing')!r} now"
            for key in sorted(before.keys() | now.keys())
            if before.get(key, _MISSING) != now.get(key, _MISSING)
        ]
        if differ:
            raise ValueError(
                f"{self.path}: expected the config that the run was begun with:\n"
                + "\n".join(differ)
            )
        then = json.loads((self.path / "versions.json").read_text())
        return [
            f"{package} {then.get(package)} then, {number} now"
            for package, number in _versions().items()
            if then.get(package) != number
        ]

    def change_config(
        self, config: Mapping[str, Any], frames: int, *, free: Collection[str] = ()
    ) -> None:
        """Write the config that a run goes on with, and under ``"changes"`` what it was before.

        Args:
            config (mapping): from now on.
            frames (int): environment steps so far.

        Keyword Args:
            free (collection of str): top-level fields that are no part of the run.
        """
        written = self._written_config()
        was, now = flat_config(self.saved_config()), flat_config(config)
        before = {
            key: was.get(key)
            for key in sorted(was.keys() | now.keys())
            if was.get(key) != now.get(key) and key.partition(".")[0] not in free
        }
        if before:
            changes = [*written.get("changes", []), {"frames": frames, "before": before}]
            text = json.dumps({**config, "changes": changes}, indent=2)
            (self.path / "config.json").write_text(text + "\n")

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
        if not (self.episodes_path.exists() and self.episodes_path.stat().st_size):
            self._append(self.episodes_path, ["frames", "episode", *evaluation.episode_columns])
        columns = (values.tolist() for values in evaluation.episode_columns.values())
        for episode, values in enumerate(zip(*columns, strict=True)):
            self._append(self.episodes_path, [frames, episode, *values])

    def sizes(self) -> dict[str, int]:
        """Bytes of every table, which :meth:`cut` goes back to."""
        tables = (self.metrics_path, self.episodes_path)
        return {path.name: path.stat().st_size if path.exists() else 0 for path in tables}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Take back what was logged after a checkpoint, which is logged again.

        Raises:
            ValueError: if a table is shorter than it was; it was changed by hand.
        """
        if not self._writes:
            return
        for name, size in sizes.items():
            path = self.path / name
            held = path.stat().st_size if path.exists() else 0
            if held < size:
                raise ValueError(
                    f"{path}: expected at least the {size} bytes it had at the checkpoint, got "
                    f"{held}: part of it is missing, and this run cannot be continued."
                )
        for name, size in sizes.items():
            path = self.path / name
            if path.exists():
                os.truncate(path, size)
        if sizes["metrics.csv"]:
            with self.metrics_path.open(newline="") as file:
                self._columns = next(csv.reader(file))

    def _append(self, path: Path, row: list[Any]) -> None:
        if not self._writes:
            return
        with path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(
                ["" if value is None else value for value in row]
            )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of fields by dotted names.

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
