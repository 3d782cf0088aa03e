"""One tidy CSV, one table and one figure from a folder of runs of ``examples/train.py``.

    python benchmarks/collect_results.py runs/grid --out docs/results/grid_predator_prey

Runs lie at ``<folder>/<method>/<seed>``. The CSV holds every evaluation of every seed; the table
the last one; the figure each seed's curve and the mean.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from torchrl_agentmixer.reporting import read_metrics

COLUMNS = (
    "frames",
    "eval_score",
    "eval_joint_score",
    "score",
    "eval_length",
    "mode_agreement",
    "team_mode_agreement",
    "divergence",
    "entropy",
)


def collect(folder: Path) -> list[dict]:
    """A row for each evaluation of each run."""
    rows = []
    for path in sorted(folder.glob("*/*/metrics.csv")):
        metrics = read_metrics(path.parent)
        for i, evaluated in enumerate(metrics["eval_score"]):
            if evaluated is not None:
                values = {name: metrics[name][i] if name in metrics else None for name in COLUMNS}
                rows.append({"method": path.parts[-3], "seed": int(path.parts[-2]), **values})
    if not rows:
        raise SystemExit(f"{folder}: expected <method>/<seed>/metrics.csv, found none.")
    return rows


def by_method(rows: list[dict]) -> dict[str, dict[int, list[dict]]]:
    groups: dict[str, dict[int, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["method"]][row["seed"]].append(row)
    return groups


def table(rows: list[dict]) -> str:
    """The last evaluation of every seed."""
    shown = {
        "decentralized modes": "eval_score",
        "joint mode": "eval_joint_score",
        "joint, sampled": "score",
        "mode agreement": "mode_agreement",
    }
    lines = [
        "| method | frames | " + " | ".join(f"{name}: each seed; mean" for name in shown) + " |",
        "|" + "---|" * (2 + len(shown)),
    ]
    for method, seeds in by_method(rows).items():
        last = [history[-1] for _, history in sorted(seeds.items())]
        cells = []
        for column in shown.values():
            values = [row[column] for row in last if row[column] is not None]
            listed = " ".join(f"{value:.3g}" for value in values)
            cells.append(f"{listed}; **{np.mean(values):.3f}**" if values else "")
        frames = min(row["frames"] for row in last)
        lines.append(f"| {method} | {frames:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Score of the decentralized modes over frames: seeds thin, mean thick."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for color, (method, seeds) in enumerate(by_method(rows).items()):
        curves = [[(r["frames"], r["eval_score"]) for r in history] for history in seeds.values()]
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=f"C{color}", linewidth=0.7, alpha=0.5)
        common = min(len(curve) for curve in curves)
        mean = np.mean([curve[:common] for curve in curves], axis=0)
        label = f"{method} ({len(curves)} seeds)"
        axes.plot(mean[:, 0], mean[:, 1], color=f"C{color}", linewidth=2, label=label)
    axes.set(xlabel="frames", ylabel="team reward per step, decentralized modes")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    arguments = parser.parse_args()
    rows = collect(arguments.folder)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )
    plot(rows, arguments.out.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
