"""Markdown tables of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from torchrl_agentmixer.reporting.runs import read_metrics
from torchrl_agentmixer.reporting.statistics import Cells, final_scores


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    first, *others = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    return "\n".join([first, "|" + "---|" * len(header), *others])


def results_table(runs: Sequence[str | Path]) -> str:
    """Format the last evaluation of each run, of the executed policy, as Markdown.

    Args:
        runs (sequence of path): run directories.

    Examples:
        >>> results_table([]).splitlines()[0].startswith("| environment")
        True
    """
    columns = {
        "frames": "frames",
        "eval_return": "return",
        "eval_score": "score",
        "eval_joint_score": "joint score",
        "eval_win_rate": "win rate",
        "mode_agreement": "mode agreement",
        "fps": "frames/s",
    }
    tables = [read_metrics(run) for run in runs]
    if not any("eval_win_rate" in table for table in tables):
        del columns["eval_win_rate"]
    rows = []
    for run, metrics in zip(runs, tables, strict=True):
        config = json.loads((Path(run) / "config.json").read_text())
        row = [config["env"]["name"], config["algorithm"]["name"], str(config["seed"])]
        metrics.setdefault("eval_joint_score", metrics.get("eval_score", []))
        for name in columns:
            known = [value for value in metrics.get(name, ()) if value is not None]
            row.append(format(known[-1], ".0f" if name == "frames" else ".4g") if known else "")
        rows.append(row)
    return markdown(["environment", "method", "seed", *columns.values()], rows)


def within_one_deviation(center: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Select the values whose interval of one deviation overlaps that of the highest value.

    Both are ``[methods]``. On the six rows of Table 1 of
    `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_ this selects the values in bold.
    """
    best = int(np.argmax(center))
    return center + deviation >= center[best] - deviation[best]


def median_table(cells: Cells, column: str, titles: Mapping[str, str] | None = None) -> str:
    """Markdown in the layout of Table 1 of `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_.

    One row per task and one column per method: median of the last evaluations over seeds, standard
    deviation of the population, and number of seeds. Bold: the interval of one deviation overlaps
    that of the best.

    Args:
        cells (mapping): runs by task and method.
        column (str): column of ``metrics.csv``.
        titles (mapping, optional): titles of methods; their names by default.
    """
    methods = sorted({method for task in cells.values() for method in task})
    rows = []
    for task, of_methods in cells.items():
        written = median_cells({m: final_scores(runs, column) for m, runs in of_methods.items()})
        rows.append([task, *(written.get(method, "") for method in methods)])
    return markdown(["task", *((titles or {}).get(method, method) for method in methods)], rows)


def median_cells(scores: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Format the cells of one task of :func:`median_table`, from values ``[seeds]`` by method."""
    center = np.array([np.median(values) for values in scores.values()])
    deviation = np.array([values.std() for values in scores.values()])
    bold = within_one_deviation(center, deviation)
    cells = {}
    for method, median, std, marked in zip(scores, center, deviation, bold, strict=True):
        written = f"{digits(median, 3)}<sub>{digits(std, 2)}</sub>"
        cells[method] = f"{f'**{written}**' if marked else written} ({len(scores[method])})"
    return cells


def digits(value: float, count: int) -> str:
    """Format with ``count`` significant digits; large numbers without an exponent."""
    value = round(value, 9)
    return f"{value:.0f}" if abs(value) >= 10 ** (count - 1) else f"{value:.{count}g}"
