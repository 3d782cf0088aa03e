"""Metrics read back from run directories, and tables of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torchrl_agentmixer.reporting.runs import Run


def read_metrics(run: str | Path) -> dict[str, list[float | None]]:
    """The columns of a run's ``metrics.csv``; empty cells are ``None``.

    Raises:
        FileNotFoundError: if the folder holds no metrics.
        ValueError: for a file without rows, or a row that is cut off or holds no number.

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
            f"{path}: expected complete lines of {len(names)} cells, got a last line "
            f"{text.splitlines()[-1][-80:]!r} that is cut off, as a run leaves that was stopped "
            "while it wrote. Remove the line, or the run."
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


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Examples:
        >>> print(markdown(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [header, *rows]
    written = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([written[0], "|" + "---|" * len(header), *written[1:]])


def within_one_deviation(center: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Which values are within one deviation of the highest: their intervals overlap with its.

    A value's interval is itself plus and minus its own deviation. On the six rows of Table 1 of
    `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_ this is what is set in bold there.

    Args:
        center (array): values ``[methods]``.
        deviation (array): standard deviations ``[methods]``.

    Examples:
        >>> within_one_deviation(np.array([0.5, 0.4, 0.2]), np.array([0.1, 0.05, 0.1])).tolist()
        [True, True, False]
    """
    best = int(np.argmax(center))
    return center + deviation >= center[best] - deviation[best]


def median_table(
    cells: Mapping[str, Mapping[str, Sequence[Run]]],
    column: str,
    titles: Mapping[str, str] | None = None,
) -> str:
    """Markdown in the layout of Table 1 of `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_.

    A line for each task and a column for each method: the median of the last evaluations of all
    seeds, their standard deviation (of the population) and number, in bold within one deviation of
    the best (:func:`within_one_deviation`).

    Args:
        cells (mapping): runs by task and method, as :func:`by_task` returns them.
        column (str): of ``metrics.csv``.
        titles (mapping, optional): of methods, their names by default.
    """
    methods = sorted({method for task in cells.values() for method in task})
    rows = []
    for task, of_methods in cells.items():
        written = median_cells(
            {m: np.array([r.final(column) for r in runs]) for m, runs in of_methods.items()}
        )
        rows.append([task, *(written.get(method, "") for method in methods)])
    return markdown(["task", *((titles or {}).get(method, method) for method in methods)], rows)


def median_cells(scores: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Cells of a task in Table 1's layout: median, deviation over seeds, and how many they are.

    Args:
        scores (mapping): by method, values ``[seeds]``, such as their last evaluations.

    Examples:
        >>> median_cells({"a": np.array([1500.0, 1700.0]), "b": np.array([0.25])})
        {'a': '**1600<sub>100</sub>** (2)', 'b': '0.25<sub>0</sub> (1)'}
    """
    center = np.array([np.median(values) for values in scores.values()])
    deviation = np.array([values.std() for values in scores.values()])
    cells = {}
    for method, median, std, bold in zip(
        scores, center, deviation, within_one_deviation(center, deviation), strict=True
    ):
        written = f"{digits(median, 3)}<sub>{digits(std, 2)}</sub>"
        cells[method] = f"{f'**{written}**' if bold else written} ({len(scores[method])})"
    return cells


def digits(value: float, count: int) -> str:
    """So many digits; no exponent for large numbers, nor digits of rounding errors."""
    value = round(value, 9)
    return f"{value:.0f}" if abs(value) >= 10 ** (count - 1) else f"{value:.{count}g}"


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
