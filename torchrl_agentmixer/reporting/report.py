"""A folder of runs as tables, plots and data."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from torchrl_agentmixer._choices import unknown_name
from torchrl_agentmixer.algorithms import decentralized_execution
from torchrl_agentmixer.reporting.marl_eval import marl_eval_data
from torchrl_agentmixer.reporting.plots import plot_bands, plot_curves, plot_gap, plot_intervals
from torchrl_agentmixer.reporting.runs import Run, read_runs
from torchrl_agentmixer.reporting.statistics import (
    Estimate,
    Normalized,
    aggregate_statistics,
    by_task,
    cell_statistics,
    final_scores,
    normalize,
    performance_profile,
    probability_of_improvement,
    sample_efficiency,
)
from torchrl_agentmixer.reporting.tables import markdown, median_table

METRICS = ("score", "return", "win_rate")
_MARKS = {True: "", False: " †", None: " ‡"}
_NOTES = {
    " †": "† executes with other agents' observations or actions: not decentralized.",
    " ‡": "‡ a method that this package does not know; whether it is decentralized is not known.",
}


def write_report(
    folder: str | Path,
    out: str | Path,
    *,
    metric: str = "score",
    baseline: str | None = None,
    resamples: int = 2000,
) -> list[Path]:
    """Report on all runs of a folder: ``report.md``, its plots, ``scores.csv``, ``marl_eval.json``.

    Scores are the last evaluation of the policy that is executed; methods whose execution is not
    decentralized are marked. All files are written elsewhere first and moved when all are there:
    on an error ``out`` stays as it was.

    Args:
        folder (path): run directories, laid out as :func:`read_runs` says.
        out (path): where the report goes; files of an earlier report are replaced.

    Keyword Args:
        metric (str): ``"score"``, team reward per step; ``"return"`` of an episode; or
            ``"win_rate"``.
        baseline (str, optional): the method that the others are compared with; the first by name.
        resamples (int): bootstrap draws of an interval.

    Returns:
        list of Path: the files.

    Raises:
        ValueError: for an unknown metric or baseline, or runs that cannot be compared.
        ImportError: without rliable or matplotlib, with the command that installs them.

    Examples:
        >>> import tempfile
        >>> from torchrl_agentmixer.training import Evaluation, RunDirectory
        >>> root = Path(tempfile.mkdtemp())
        >>> run = RunDirectory(root / "runs" / "climbing" / "mappo" / "seed_0")
        >>> env = {"name": "matrix/climbing", "kwargs": {}, "total_frames": 10}
        >>> run.save_config({"env": env, "algorithm": {"name": "mappo"}, "seed": 0})
        >>> run.log({"frames": 10, "eval_score": 7.0, "eval_return": 7.0})
        >>> run.log_episodes(10, Evaluation(np.array([7.0]), np.array([1])))
        >>> files = write_report(root / "runs", root / "report", resamples=10)
        >>> [path.name for path in files if path.suffix != ".png"]
        ['marl_eval.json', 'report.md', 'scores.csv']
    """
    if metric not in METRICS:
        raise ValueError(unknown_name("metric", metric, METRICS))
    runs = read_runs(folder)
    methods = sorted({run.method for run in runs})
    if baseline is not None and baseline not in methods:
        raise ValueError(unknown_name("baseline", baseline, methods))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as unfinished:
        _write(runs, Path(unfinished), metric, baseline or methods[0], resamples)
        out.mkdir(exist_ok=True)
        written = []
        for path in sorted(Path(unfinished).iterdir()):
            os.replace(path, out / path.name)
            written.append(out / path.name)
    return written


def _write(runs: Sequence[Run], out: Path, metric: str, baseline: str, resamples: int) -> None:
    column = f"eval_{metric}"
    cells = by_task(runs)
    titles = {run.method: run.method + _mark(run) for run in runs}
    normalized = normalize(cells, column)
    plot_curves(cells, column, out / "curves.png", titles=titles, resamples=resamples)
    plot_gap(cells, column, f"eval_joint_{metric}", out / "joint_and_executed.png", titles=titles)
    sections = [
        "# Report",
        f"Scores are {column} of the last evaluation, of the policy that is executed. In brackets "
        f"are 95 % stratified bootstrap intervals over seeds, by rliable, of {resamples} draws.",
        *(note for mark, note in _NOTES.items() if any(mark in t for t in titles.values())),
        "## Median and deviation\n\nMedian over seeds, standard deviation, and number of seeds; in "
        "bold where its interval of one deviation overlaps with that of the best.",
        median_table(cells, column, titles),
        "## Tasks",
        _task_table(cells, metric, titles, resamples),
        "![Learning curves: mean over seeds with its interval, and every seed](curves.png)",
        "![The policy that collects, dashed, and the one that is executed](joint_and_executed.png)",
    ]
    sections += _aggregate(normalized, list(cells), titles, baseline, out, resamples)
    (out / "report.md").write_text("\n\n".join(sections) + "\n")
    _write_scores(runs, metric, out / "scores.csv")
    (out / "marl_eval.json").write_text(json.dumps(marl_eval_data(runs)) + "\n")


def _mark(run: Run) -> str:
    return _MARKS[decentralized_execution(run.config["algorithm"]["name"])]


def _task_table(
    cells: Mapping[str, Mapping[str, Sequence[Run]]],
    metric: str,
    titles: Mapping[str, str],
    resamples: int,
) -> str:
    rows = []
    for task, methods in cells.items():
        for method, runs in methods.items():
            statistics = cell_statistics(final_scores(runs, f"eval_{metric}"), resamples=resamples)
            joint = f"eval_joint_{metric}"
            known = all(joint in run.metrics for run in runs)
            rows.append(
                [
                    task,
                    titles[method],
                    str(len(runs)),
                    *(f"{estimate:.4g}" for estimate in statistics.values()),
                    f"{final_scores(runs, joint).mean():.4g}" if known else "",
                ]
            )
    names = ["task", "method", "seeds", "mean", "median", "IQM", "mean of the joint policy"]
    return markdown(names, rows)


def _aggregate(
    normalized: Normalized,
    tasks: Sequence[str],
    titles: Mapping[str, str],
    baseline: str,
    out: Path,
    resamples: int,
) -> list[str]:
    """The sections of all tasks together, and their plots."""
    counted = f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}"
    sections = [
        f"## All tasks\n\nEach of the {counted} scaled to [0, 1] by the lowest and the highest "
        "evaluation of its runs."
    ]
    sections += [f"{titles[method]}: {note}." for method, note in normalized.notes.items()]
    scores = normalized.final
    if not scores:
        return sections
    estimates = {titles[m]: aggregate_statistics(s, resamples=resamples) for m, s in scores.items()}
    seeds = {titles[method]: str(len(s)) for method, s in scores.items()}
    names = list(next(iter(estimates.values())))
    rows = [[m, seeds[m], *(f"{e:.3f}" for e in by.values())] for m, by in estimates.items()]
    sections.append(markdown(["method", "seeds a task", *names], rows))
    plot_intervals(estimates, out / "aggregate.png", xlabel="scaled score")
    sections.append("![Statistics of all tasks](aggregate.png)")
    sections += _improvement(scores, titles, baseline, out, resamples)
    thresholds = np.linspace(0.0, 1.0, 51)
    profiles = {
        titles[m]: performance_profile(s, thresholds, resamples=resamples)
        for m, s in scores.items()
    }
    plot_bands(
        thresholds,
        profiles,
        out / "performance_profiles.png",
        xlabel="scaled score",
        ylabel="share of runs above it",
    )
    curves = {
        titles[m]: sample_efficiency(c, resamples=resamples) for m, c in normalized.curves.items()
    }
    plot_bands(
        normalized.shares,
        curves,
        out / "sample_efficiency.png",
        xlabel="share of the budget",
        ylabel="IQM of scaled scores",
    )
    return [
        *sections,
        "![Performance profiles](performance_profiles.png)",
        "![Sample efficiency](sample_efficiency.png)",
    ]


def _improvement(
    scores: Mapping[str, np.ndarray],
    titles: Mapping[str, str],
    baseline: str,
    out: Path,
    resamples: int,
) -> list[str]:
    others = [method for method in scores if method != baseline]
    if not others or baseline not in scores:
        return []
    name = f"P(X > {titles[baseline]})"
    estimates: dict[str, dict[str, Estimate]] = {
        titles[m]: {
            name: probability_of_improvement(scores[m], scores[baseline], resamples=resamples)
        }
        for m in others
    }
    plot_intervals(
        estimates,
        out / "probability_of_improvement.png",
        xlabel="probability",
        limits=(-0.02, 1.02),
    )
    return [
        "Probability that a run of X scores better than one of the method that it is compared "
        "with, ties counted half, averaged over tasks.",
        markdown(["X", name], [[m, f"{by[name]:.3f}"] for m, by in estimates.items()]),
        "![Probability of improvement](probability_of_improvement.png)",
    ]


def _write_scores(runs: Sequence[Run], metric: str, path: Path) -> None:
    """Every run's last evaluation."""
    columns = (f"eval_{metric}", f"eval_joint_{metric}")
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "method", "seed", "frames", *columns])
        for run in runs:
            finals = [run.final(c) if c in run.metrics else "" for c in columns]
            writer.writerow([run.task, run.method, run.seed, run.total_frames, *finals])
