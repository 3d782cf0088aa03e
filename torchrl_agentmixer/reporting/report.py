"""Report on a folder of runs: tables, plots and data."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from torchrl_agentmixer._choices import unknown_name
from torchrl_agentmixer.reporting.marl_eval import marl_eval_data
from torchrl_agentmixer.reporting.plots import Curve, plot_curves, plot_intervals, plot_panels
from torchrl_agentmixer.reporting.runs import Run, read_runs
from torchrl_agentmixer.reporting.statistics import (
    Cells,
    Estimate,
    by_task,
    final_scores,
    normalize,
    performance_profile,
    probability_of_improvement,
    sample_efficiency,
    summary,
)
from torchrl_agentmixer.reporting.tables import markdown, median_table

METRICS = ("score", "return", "win_rate")
_MARKS = {True: "", False: " †", None: " ‡"}
_NOTES = {
    " †": "† executes with other agents' observations or actions: not decentralized.",
    " ‡": "‡ config.json does not say whether the execution is decentralized.",
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

    Scores are the last evaluation of the executed policy. Methods whose execution is not
    decentralized are marked. On an error, ``out`` stays unchanged.

    Args:
        folder (path): run directories in the layout of :func:`read_runs`.
        out (path): folder of the report; files of an earlier report are replaced.

    Keyword Args:
        metric (str): ``"score"`` (team reward per step), ``"return"`` or ``"win_rate"`` of an
            episode.
        baseline (str, optional): the method that the others are compared with; the first by name
            by default.
        resamples (int): number of bootstrap samples of an interval.

    Returns:
        list of Path: the files.

    Raises:
        ValueError: for an unknown metric or baseline, or runs that cannot be compared.
        ImportError: without rliable or matplotlib, with the command that installs it.

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
        _Report(runs, metric, baseline or methods[0], Path(unfinished), resamples).write()
        out.mkdir(exist_ok=True)
        written = []
        for path in sorted(Path(unfinished).iterdir()):
            os.replace(path, out / path.name)
            written.append(out / path.name)
    return written


@dataclass(frozen=True)
class _Report:
    runs: Sequence[Run]
    metric: str
    baseline: str
    out: Path
    resamples: int

    @cached_property
    def cells(self) -> Cells:
        return by_task(self.runs)

    @cached_property
    def titles(self) -> dict[str, str]:
        return {r.method: r.method + _MARKS[r.decentralized_execution] for r in self.runs}

    def write(self) -> None:
        column = f"eval_{self.metric}"
        marks = {_MARKS[run.decentralized_execution] for run in self.runs}
        plot_curves(self.cells, self.metric, self.out / "curves.png", self.titles, self.resamples)
        sections = [
            "# Report",
            f"Scores are {column} of the last evaluation, of the executed policy. Brackets: 95 % "
            f"stratified bootstrap intervals over seeds by rliable, {self.resamples} samples.",
            *(note for mark, note in _NOTES.items() if mark in marks),
            "## Median and deviation\n\nMedian and standard deviation over seeds, and the number "
            "of seeds. Bold: the interval of one deviation overlaps that of the best.",
            median_table(self.cells, column, self.titles),
            "## Tasks",
            self.task_table(),
            "Solid: mean of the executed policy over seeds with its interval, and thin, every "
            "seed. Dashed: mean of the joint policy (or expert), for methods that have one.",
            "![Learning curves](curves.png)",
            *self.all_tasks(),
        ]
        (self.out / "report.md").write_text("\n\n".join(sections) + "\n")
        (self.out / "marl_eval.json").write_text(json.dumps(marl_eval_data(self.runs)) + "\n")
        with (self.out / "scores.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            columns = [column, f"eval_joint_{self.metric}"]
            writer.writerow(["task", "method", "seed", "frames", *columns])
            for run in self.runs:
                finals = [run.final(c) for c in (column, run.joint_column(self.metric))]
                writer.writerow([run.task, run.method, run.seed, run.total_frames, *finals])

    def task_table(self) -> str:
        rows = []
        for task, methods in self.cells.items():
            for method, runs in methods.items():
                scores = final_scores(runs, f"eval_{self.metric}")[:, None]
                statistics = summary(scores, resamples=self.resamples).values()
                joint = np.mean([run.final(run.joint_column(self.metric)) for run in runs])
                numbers = [str(len(runs)), *(f"{e:.4g}" for e in statistics), f"{joint:.4g}"]
                rows.append([task, self.titles[method], *numbers])
        names = ["task", "method", "seeds", "mean", "median", "IQM", "mean of the joint policy"]
        return markdown(names, rows)

    def all_tasks(self) -> list[str]:
        """Sections and plots of all tasks together."""
        scaled = normalize(self.cells, f"eval_{self.metric}")
        sections = [
            "## All tasks\n\nEach task is scaled to [0, 1] by the lowest and highest evaluation of "
            f"its runs. Tasks: {len(self.cells)}. The median of several tasks is that of their "
            "means.",
            *(f"{self.titles[method]}: {note}." for method, note in scaled.notes.items()),
        ]
        scores, options = scaled.final, {"resamples": self.resamples}
        if not scores:
            return sections
        estimates = {self.titles[m]: summary(s, **options) for m, s in scores.items()}
        rows = [
            [self.titles[m], str(len(s)), *(f"{e:.3f}" for e in estimates[self.titles[m]].values())]
            for m, s in scores.items()
        ]
        sections.append(markdown(["method", "seeds per task", "mean", "median", "IQM"], rows))
        plot_intervals(estimates, self.out / "aggregate.png", "scaled score")
        x = np.linspace(0.0, 1.0, 51)
        profiles = {m: performance_profile(s, x, **options) for m, s in scores.items()}
        self.plot("performance_profiles.png", x, profiles, "scaled score", "share of runs above")
        curves = {m: sample_efficiency(c, **options) for m, c in scaled.curves.items()}
        x = scaled.shares
        self.plot("sample_efficiency.png", x, curves, "share of the budget", "IQM of scaled scores")
        return [
            *sections,
            "![Statistics of all tasks](aggregate.png)",
            *self.improvement(scores),
            "![Performance profiles](performance_profiles.png)",
            "![Sample efficiency](sample_efficiency.png)",
        ]

    def plot(
        self, name: str, x: np.ndarray, estimates: Mapping[str, Estimate], *labels: str
    ) -> None:
        curves = {
            self.titles[m]: Curve((x, e.value), (e.low, e.high)) for m, e in estimates.items()
        }
        plot_panels({"": curves}, self.out / name, *labels)

    def improvement(self, scores: Mapping[str, np.ndarray]) -> list[str]:
        """Section and plot of the probability of improvement over the baseline."""
        others = [method for method in scores if method != self.baseline]
        if not others or self.baseline not in scores:
            return []
        name, base = f"P(X > {self.titles[self.baseline]})", scores[self.baseline]
        estimates: dict[str, dict[str, Estimate]] = {}
        for m in others:
            chance = probability_of_improvement(scores[m], base, resamples=self.resamples)
            estimates[self.titles[m]] = {name: chance}
        path = self.out / "probability_of_improvement.png"
        plot_intervals(estimates, path, "probability", limits=(-0.02, 1.02))
        return [
            "Probability that a run of X scores better than a run of the baseline, with ties "
            "counted half, averaged over tasks.",
            markdown(["X", name], [[m, f"{by[name]:.3f}"] for m, by in estimates.items()]),
            "![Probability of improvement](probability_of_improvement.png)",
        ]
