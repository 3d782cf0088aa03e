"""Metrics read back from run directories, and tables of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path


def read_metrics(run: str | Path) -> dict[str, list[float | None]]:
    """The columns of a run's ``metrics.csv``; empty cells are ``None``.

    Raises:
        FileNotFoundError: if the folder holds no metrics.

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
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    return {name: [float(row[name]) if row[name] else None for row in rows] for name in names}


def results_table(runs: Sequence[str | Path]) -> str:
    """Markdown: the last evaluation of each run, of the decentralized policy.

    Args:
        runs (sequence of path): run directories.

    Examples:
        >>> results_table([]).splitlines()[0].startswith("| environment")
        True
    """
    columns = {
        "eval_return": "return",
        "eval_score": "score",
        "eval_joint_score": "joint score",
        "eval_win_rate": "win rate",
        "mode_agreement": "mode agreement",
        "fps": "frames/s",
    }
    known = {name for run in runs for name in read_metrics(run)}
    if "eval_win_rate" not in known:
        del columns["eval_win_rate"]
    lines = [
        "| environment | method | seed | frames | " + " | ".join(columns.values()) + " |",
        "|" + "---|" * (4 + len(columns)),
    ]
    for run in runs:
        config = json.loads((Path(run) / "config.json").read_text())
        metrics = read_metrics(run)
        last = {name: _last(metrics.get(name, [])) for name in ("frames", *columns)}
        cells = [
            config["env"]["name"],
            config["algorithm"]["name"],
            str(config["seed"]),
            f"{last['frames']:.0f}" if last["frames"] is not None else "",
            *(_format(last[name]) for name in columns),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
