"""Report of a study: rows of evaluations, and their CSV, tables and plots.

``study.py`` writes it. A row is one evaluation of one run: environment, candidate, seed, frames and
the columns of ``COLUMNS``.
"""

from __future__ import annotations

import csv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import yaml

from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.reporting.plots import MAX_CURVES, Curve, mean_curve, plot_panels
from torchrl_agentmixer.reporting.statistics import probability_of_improvement
from torchrl_agentmixer.reporting.tables import digits, markdown, median_cells

# Titles of the columns. The first three are scores or returns of evaluations.
COLUMNS = {
    "eval": "decentralized modes",
    "eval_joint": "joint mode",
    "eval_individual": "individual, sampled",
    "score": "joint, sampled",
    "mode_agreement": "mode agreement",
    "team_mode_agreement": "team mode agreement",
    "divergence": "KL(joint, product)",
    "entropy": "entropy",
}
TABLE = ("eval", "eval_joint", "eval_individual", "mode_agreement")
CURVES = (*TABLE, "divergence", "entropy")
FRONT_MATTER = "---\norphan: true\n---\n"
ARCHIVED = "Measured with earlier options and defaults, and kept as results: {}."
OVERVIEW = """\
Last evaluations of the decentralized modes: median and standard deviation over seeds, and the
number of seeds. Bold: within one deviation of the best."""
EVERY_SEED = """\
Below: the last evaluation of every seed and their mean, and the probability that a seed scores
better than a seed of the first candidate, with ties counted half and a 95 % bootstrap interval.
`evaluations.csv` has every evaluation, `overrides.yaml` the overrides of the runs."""

RunName = tuple[str, str, int]  # environment, candidate, seed
Rows = list[dict[str, Any]]
Overrides = dict[str, dict[str, list[str]]]  # by environment and candidate


class Report(NamedTuple):
    """Rows by run, and the overrides of the runs."""

    rows: dict[RunName, Rows]
    overrides: Overrides


def read_run(name: RunName, metric: str, folder: Path) -> Rows:
    """Rows of a complete run, rounded as in the CSV."""
    rows = []
    metrics = read_metrics(folder)
    columns = {n: f"{n}_{metric}" if n.startswith("eval") else n for n in COLUMNS}
    if columns["eval_joint"] not in metrics:  # a method without a joint policy
        columns["eval_joint"] = columns["eval"]
    run = dict(zip(("environment", "candidate", "seed"), name, strict=True))
    for i, frames in enumerate(metrics["frames"]):
        values = {n: metrics[key][i] if key in metrics else None for n, key in columns.items()}
        if values["eval"] is not None:
            rounded = {n: v if v is None else float(f"{v:.6g}") for n, v in values.items()}
            rows.append({**run, "frames": frames, **rounded})
    return rows


def read_report(folder: Path) -> Report:
    """Read a report; empty if the folder has none."""
    if not (folder / "evaluations.csv").exists():
        return Report({}, {})
    if not (folder / "overrides.yaml").exists():
        raise SystemExit(
            f"{folder}: expected overrides.yaml next to evaluations.csv, got none: the options of "
            "its runs are unknown. Report into another folder."
        )
    rows: dict[RunName, Rows] = {}
    with (folder / "evaluations.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            name = line["environment"], line["candidate"], int(line["seed"])
            values = {n: float(line[n]) if line[n] else None for n in ("frames", *COLUMNS)}
            run = dict(zip(("environment", "candidate", "seed"), name, strict=True))
            rows.setdefault(name, []).append({**run, **values})
    return Report(rows, yaml.safe_load((folder / "overrides.yaml").read_text()))


def write_report(report: Report, target: Path, archived: set[str]) -> str:
    """Write a report; earlier files are replaced when all new ones are written."""
    rows = [row for found in report.rows.values() for row in found]
    text = page(rows, target.name, archived)
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        unfinished = Path(folder)
        with (unfinished / "evaluations.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
                for row in rows
            )
        (unfinished / "overrides.yaml").write_text(
            yaml.safe_dump(report.overrides, sort_keys=False)
        )
        (unfinished / "README.md").write_text(text)
        for name in dict.fromkeys(row["environment"] for row in rows):
            plot(rows, name, unfinished / f"{name}.png")
        for path in sorted(unfinished.iterdir()):
            path.replace(target / path.name)
    return text


def page(rows: Rows, title: str, archived: set[str]) -> str:
    """The page of a report, in Markdown; the front matter keeps it out of the navigation."""
    environments = list(dict.fromkeys(row["environment"] for row in rows))
    old = [f"`{name}`" for name in dict.fromkeys(r["candidate"] for r in rows) if name in archived]
    sections = [
        f"{FRONT_MATTER}# {title}",
        *([ARCHIVED.format(", ".join(old))] if old else []),
        OVERVIEW,
        overview(rows, environments),
        EVERY_SEED,
        *(f"## {name}\n\n{table(rows, name)}\n\n![Curves]({name}.png)" for name in environments),
    ]
    return "\n\n".join(sections) + "\n"


def histories(rows: Rows, environment: str) -> dict[str, list[Rows]]:
    """Rows of each seed of each candidate."""
    found: dict[str, dict[int, Rows]] = {}
    for row in rows:
        if row["environment"] == environment:
            seeds = found.setdefault(row["candidate"], {})
            seeds.setdefault(row["seed"], []).append(row)
    return {name: [seeds[seed] for seed in sorted(seeds)] for name, seeds in found.items()}


def overview(rows: Rows, environments: list[str]) -> str:
    """A table with a row per candidate and a column per environment."""
    columns = []
    for environment in environments:
        candidates = histories(rows, environment).items()
        last = {name: np.array([history[-1]["eval"] for history in x]) for name, x in candidates}
        columns.append(median_cells(last))
    names = dict.fromkeys(row["candidate"] for row in rows)
    lines = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return markdown(["candidate", *environments], lines)


def table(rows: Rows, environment: str) -> str:
    """A table with the last evaluation of every seed of every candidate."""
    last = {n: [history[-1] for history in x] for n, x in histories(rows, environment).items()}
    scores = {n: np.array([[row["eval"]] for row in seeds]) for n, seeds in last.items()}
    first = next(iter(last))
    lines = []
    for name, seeds in last.items():
        cells = [name]
        for column in TABLE:
            values = [row[column] for row in seeds if row[column] is not None]
            every = " ".join(digits(value, 3) for value in values)
            cells.append(f"{every}; **{np.mean(values):.3f}**" if values else "")
        chance = probability_of_improvement(scores[name], scores[first]) if name != first else ""
        lines.append([*cells, f"{chance:.2f}" if chance else ""])
    header = ["candidate", *(COLUMNS[name] for name in TABLE), f"P(improves on {first})"]
    return markdown(header, lines)


def plot(rows: Rows, environment: str, path: Path) -> None:
    """Plot evaluations and diagnostics over frames; of many candidates, the evaluations only."""
    candidates = histories(rows, environment)
    many = len(candidates) > MAX_CURVES
    panels: dict[str, dict[str, Curve]] = {}
    for column in CURVES[:1] if many else CURVES:
        for name, seeds in candidates.items():
            points = seed_curves(seeds, column)
            if points:
                joint = seed_curves(seeds, "eval_joint") if many else []
                panels.setdefault(COLUMNS[column], {})[name] = mean_curve(points, joint)
    plot_panels(panels, path, "frames", title=environment)


def seed_curves(seeds: list[Rows], column: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames and values of the seeds that have a column."""
    known = [[(r["frames"], r[column]) for r in rows if r[column] is not None] for rows in seeds]
    return [tuple(np.array(points).T) for points in known if points]
