"""A grid of candidates, environments and seeds, resumed where it was stopped; CSV, tables, plots.

    python benchmarks/study.py benchmarks/studies/grids.yaml --out runs/grids \\
        --report docs/results/grids

A study is a list of experiments, done in order, so that the first ones are complete if time runs
out; each crosses its environments with its candidates and seeds (how many, or a list of them).
Environments and candidates are lists of overrides of ``examples/train.py``, which is what runs.
What is compared is the ``metric`` of evaluation episodes: ``score``, total reward over total steps
(the default), or ``return``.

A run that is complete lies at ``<out>/<environment>/<candidate>/<seed>``; one that was stopped
goes on from its last checkpoint. The report holds every seed: a tidy CSV with every evaluation, and
a page with an overview, a table for each environment, and its curves. The first candidate of an
environment is the one that the others are compared with.

A report stands for its runs: what is in the one at ``--report``, or in one given as ``--known``,
is not done again and keeps its place, as long as its overrides (``overrides.yaml``) are the
study's. So a seed can be added to published tables on another machine. A report that has other
runs as well is not replaced. Reports do not know with which version of the code they were made:
after a change that matters, begin a new one.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import yaml
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image
from torch.multiprocessing import get_context

from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.reporting.tables import digits, markdown, median_cells

EXAMPLES = Path(__file__).parent.parent / "examples"
# What tables and plots call the columns. The first three are returns or scores of evaluations.
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
CURVES = (*TABLE[:3], "mode_agreement", "divergence", "entropy")
OVERVIEW = """\
Last evaluations of the decentralized modes: median and standard deviation over seeds, and how many
these are; in bold within one deviation of the best."""
EVERY_SEED = """\
Below, the last evaluations of every seed, then their mean, and the probability that a seed scores
better than one of the first candidate, ties counted half, with a 95 % bootstrap interval.
`evaluations.csv` has every evaluation, `overrides.yaml` what the runs were made with."""
FIXED = ("plots=false", "num_threads=1", "auto_resume=true")


RunName = tuple[str, str, int]  # environment, candidate, seed


class Job(NamedTuple):
    """One run: where it goes, and its overrides."""

    environment: str
    candidate: str
    seed: int
    metric: str
    overrides: tuple[str, ...]  # all but the seed

    @property
    def name(self) -> RunName:
        return self.environment, self.candidate, self.seed

    def folder(self, out: Path) -> Path:
        return out / self.environment / self.candidate / str(self.seed)


def _seeds(seeds: int | list[int]) -> Iterable[int]:
    return range(seeds) if isinstance(seeds, int) else seeds


def read_study(path: Path) -> list[Job]:
    """All runs: experiment by experiment, and in each seed by seed."""
    jobs = [
        Job(
            environment,
            candidate,
            seed,
            experiment.get("metric", "score"),
            (*where, *what),
        )
        for experiment in yaml.safe_load(path.read_text())
        for seed in _seeds(experiment["seeds"])
        for environment, where in experiment["environments"].items()
        for candidate, what in experiment["candidates"].items()
    ]
    names = [job.name for job in jobs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SystemExit(f"{path}: expected every run once, got {sorted(twice)} more than once.")
    return jobs


def run(job: Job, out: Path) -> str:
    """Do one run in a folder of its own, which gets its name when it is complete."""
    sys.path.insert(0, str(EXAMPLES))
    import train
    from hydra import compose, initialize_config_dir

    folder = job.folder(out)
    unfinished = folder.with_suffix(".unfinished")
    if not train.can_resume(unfinished):
        shutil.rmtree(unfinished, ignore_errors=True)
    with initialize_config_dir(str(EXAMPLES.resolve() / "conf"), version_base="1.3"):
        config = compose("config", overrides=[*job.overrides, f"seed={job.seed}", *FIXED])
    last = train.run(config, unfinished)
    unfinished.rename(folder)
    value = last[f"eval_{job.metric}"]
    return f"{job.environment}, {job.candidate}, seed {job.seed}: {value:.4g}"


def read_run(job: Job, out: Path) -> list[dict]:
    """A row for each evaluation of a complete run."""
    rows = []
    metrics = read_metrics(job.folder(out))
    columns = {n: f"{n}_{job.metric}" if n.startswith("eval") else n for n in COLUMNS}
    for i, frames in enumerate(metrics["frames"]):
        values = {n: metrics[key][i] if key in metrics else None for n, key in columns.items()}
        if values["eval"] is not None:
            what = {"environment": job.environment, "candidate": job.candidate}
            # As the CSV has them, so that a report of it says the same.
            rounded = {n: v if v is None else float(f"{v:.6g}") for n, v in values.items()}
            rows.append({**what, "seed": job.seed, "frames": frames, **rounded})
    return rows


def read_report(jobs: list[Job], folder: Path) -> tuple[dict[RunName, list[dict]], set[RunName]]:
    """The rows of those runs that are in a report, and were made with the same overrides.

    And the names of what else the report has.
    """
    if not (folder / "evaluations.csv").exists():
        return {}, set()
    if not (folder / "overrides.yaml").exists():
        raise SystemExit(
            f"{folder}: expected overrides.yaml beside evaluations.csv, found none: nothing says "
            "what its runs were made with. Report into another folder."
        )
    made_with = yaml.safe_load((folder / "overrides.yaml").read_text())
    known: dict[RunName, list[dict]] = {
        job.name: []
        for job in jobs
        if made_with.get(job.environment, {}).get(job.candidate) == list(job.overrides)
    }
    others = set()
    with (folder / "evaluations.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            what = {"environment": row["environment"], "candidate": row["candidate"]}
            numbers = {"seed": int(row["seed"]), "frames": float(row["frames"])}
            values = {name: float(row[name]) if row[name] else None for name in COLUMNS}
            name = (row["environment"], row["candidate"], numbers["seed"])
            if name in known:
                known[name].append({**what, **numbers, **values})
            else:
                others.add(name)
    return {name: rows for name, rows in known.items() if rows}, others


def _listed(names: set[RunName]) -> str:
    """What these runs are of: environments and candidates."""
    return ", ".join(sorted({f"{environment}/{candidate}" for environment, candidate, _ in names}))


def histories(rows: list[dict], environment: str) -> dict[str, list[list[dict]]]:
    """Each candidate's seeds, each a list of evaluations."""
    found: dict[str, dict[int, list[dict]]] = {}
    for row in rows:
        if row["environment"] == environment:
            seeds = found.setdefault(row["candidate"], {})
            seeds.setdefault(row["seed"], []).append(row)
    return {name: [seeds[seed] for seed in sorted(seeds)] for name, seeds in found.items()}


def probability_of_improvement(
    x: np.ndarray, y: np.ndarray, *, resamples: int = 2000
) -> tuple[float, float, float]:
    """P(X > Y), ties counted half, with a 95 % bootstrap interval over seeds."""

    def estimate(a: np.ndarray, b: np.ndarray) -> float:
        difference = a[:, None] - b
        return float(((difference > 1e-6) + 0.5 * (abs(difference) <= 1e-6)).mean())

    rng = np.random.default_rng(0)
    draws = [estimate(rng.choice(x, len(x)), rng.choice(y, len(y))) for _ in range(resamples)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return estimate(x, y), float(low), float(high)


def table(rows: list[dict], environment: str) -> str:
    """The last evaluation of every seed of every candidate, in Markdown."""
    candidates = histories(rows, environment)
    first = next(iter(candidates))
    last = {name: [history[-1] for history in seeds] for name, seeds in candidates.items()}
    lines = []
    for name, seeds in last.items():
        cells = [name]
        for column in TABLE:
            values = [row[column] for row in seeds if row[column] is not None]
            listed = " ".join(digits(v, 3) for v in values)
            cells.append(f"{listed}; **{np.mean(values):.3f}**" if values else "")
        scores, baseline = (
            np.array([row["eval"] for row in last[which]]) for which in (name, first)
        )
        improvement = probability_of_improvement(scores, baseline)
        cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*improvement) if name != first else "")
        lines.append(cells)
    header = ["candidate", *(COLUMNS[name] for name in TABLE), f"P(improves on {first})"]
    return markdown(header, lines)


def overview(rows: list[dict], environments: list[str]) -> str:
    """A line for each candidate, a column for each environment: last decentralized modes."""
    columns = []
    for environment in environments:
        candidates = histories(rows, environment).items()
        last = {name: np.array([history[-1]["eval"] for history in x]) for name, x in candidates}
        columns.append(median_cells(last))
    names = dict.fromkeys(row["candidate"] for row in rows)
    lines = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return markdown(["candidate", *environments], lines)


def plot(rows: list[dict], environment: str, path: Path) -> None:
    """Curves over frames: seeds thin, their mean thick."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3, sharex=True)
    for axes, column in zip(panels.flat, CURVES, strict=True):
        for number, (name, seeds) in enumerate(histories(rows, environment).items()):
            # Ten dark colors, then their light ones.
            color = colormaps["tab20"](2 * number % 20 + number // 10 % 2)
            curves = [
                [(row["frames"], row[column]) for row in history if row[column] is not None]
                for history in seeds
            ]
            curves = [curve for curve in curves if curve]
            if not curves:
                continue
            for curve in curves:
                axes.plot(*zip(*curve, strict=True), color=color, linewidth=0.5, alpha=0.35)
            common = min(map(len, curves))
            mean = np.mean([curve[:common] for curve in curves], axis=0)
            label = f"{name} ({len(curves)})"
            axes.plot(mean[:, 0], mean[:, 1], color=color, linewidth=2, label=label)
        axes.set_title(COLUMNS[column], fontsize=10)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(f"{environment}: evaluations and diagnostics over frames")
    figure.savefig(path, dpi=80)
    # With a palette, a third of the size; this method keeps the colors of thin lines.
    picture = Image.open(path).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def report(jobs: list[Job], out: Path, target: Path, known: dict[RunName, list[dict]]) -> None:
    """Write the CSV, tables and plots of what is complete, or ``known`` from reports.

    What was there is replaced when all of it is written.
    """
    rows, made_with = [], {}
    for job in jobs:
        found = read_run(job, out) if job.folder(out).exists() else known.get(job.name)
        if found:
            rows += found
            made_with.setdefault(job.environment, {})[job.candidate] = list(job.overrides)
    if not rows:
        raise SystemExit(f"{out}: expected complete runs of this study, found none.")
    environments = list(dict.fromkeys(row["environment"] for row in rows))
    tables = "\n".join(
        f"## {name}\n\n{table(rows, name)}\n\n![Curves]({name}.png)\n" for name in environments
    )
    summary = overview(rows, environments)
    page = f"# {target.name}\n\n{OVERVIEW}\n\n{summary}\n\n{EVERY_SEED}\n\n{tables}"
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
        (unfinished / "overrides.yaml").write_text(yaml.safe_dump(made_with, sort_keys=False))
        (unfinished / "README.md").write_text(page)
        for name in environments:
            plot(rows, name, unfinished / f"{name}.png")
        for path in sorted(unfinished.iterdir()):
            path.replace(target / path.name)
    print(page)


def run_all(jobs: list[Job], out: Path, processes: int) -> int:
    """Do the runs, saying of each what came of it; how many failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # takes the worker processes along
    failed = 0
    with get_context("spawn").Pool(processes) as pool:
        results = [(job, pool.apply_async(run, (job, out))) for job in jobs]
        for job, result in results:
            try:
                print(result.get(), flush=True)
            except Exception as error:
                failed += 1
                print(f"{job.folder(out)}: {type(error).__name__}: {error}", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--processes", type=int, default=2, help="0: no runs, only the report")
    parser.add_argument("--report", type=Path, help="where the report of complete runs goes")
    parser.add_argument(
        "--known", type=Path, nargs="+", default=[], help="reports to take runs from"
    )
    parser.add_argument("--only", nargs="+", default=[], help="environments or candidates")
    arguments = parser.parse_args()
    jobs = read_study(arguments.study)
    known = {}
    for folder in arguments.known:
        reported, others = read_report(jobs, folder)
        known.update(reported)
        changed = others & {job.name for job in jobs}
        if changed:
            print(f"{folder}: not taken, made with other overrides: {_listed(changed)}")
    if arguments.report:
        reported, others = read_report(jobs, arguments.report)
        if others:
            raise SystemExit(
                f"{arguments.report}: expected a report of this study, found runs of "
                f"{_listed(others)} that it lacks or has with other overrides, and that "
                "would be lost. Report into another folder; --known takes what can be kept."
            )
        known.update(reported)
    failed = 0
    if arguments.processes:
        chosen = set(arguments.only)
        todo = [
            job
            for job in jobs
            if not job.folder(arguments.out).exists()
            and job.name not in known
            and (not chosen or chosen & {job.environment, job.candidate})
        ]
        print(f"{len(jobs) - len(todo)} of {len(jobs)} runs complete or left out")
        failed = run_all(todo, arguments.out, arguments.processes)
    if arguments.report:
        report(jobs, arguments.out, arguments.report, known)
    if failed:
        raise SystemExit(f"{failed} runs failed; the others are complete.")


if __name__ == "__main__":
    main()
