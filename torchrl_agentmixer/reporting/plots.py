"""Plots of learning curves and of statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_agentmixer.reporting.runs import Run, read_metrics
from torchrl_agentmixer.reporting.statistics import Cells, Estimate, Points, aligned, estimate

MAX_CURVES = 6  # in one panel
JOINT, _GRAY = "joint policy", "0.6"


@dataclass(frozen=True)
class Curve:
    """One curve of a panel."""

    points: Points  # such as the mean over seeds
    band: Points | None = None  # lower and upper bound at the same x
    seeds: Sequence[Points] = ()  # every seed, drawn thin
    joint: Points | None = None  # of the joint policy, drawn dashed


def mean_curve(seeds: Sequence[Points], joint: Sequence[Points] = (), resamples: int = 0) -> Curve:
    """Mean over seeds, with a bootstrap interval if ``resamples`` > 0."""
    x, values = aligned(seeds)
    band = None
    if resamples:
        mean = estimate(values[:, None], lambda draw: draw.mean((0, 1)), resamples=resamples)
        band = mean.low, mean.high
    return Curve((x, values.mean(0)), band, seeds, mean_curve(joint).points if joint else None)


def plot_learning_curve(run: str | Path, path: str | Path | None = None) -> Path:
    """Plot the returns of a run's joint and executed policy over frames.

    Args:
        run (path): a run directory.
        path (path, optional): the PNG file; ``learning_curve.png`` in the run directory by default.

    Returns:
        Path: the PNG file.

    Raises:
        FileNotFoundError: if the folder has no ``metrics.csv``.
        ImportError: without matplotlib, with the command that installs it.
    """
    metrics = read_metrics(run)
    labels = {
        "return": "joint policy, training",
        "eval_joint_return": "joint policy, mode",
        "eval_return": "executed policy, mode",
    }
    curves = {}
    for name in [name for name in labels if name in metrics]:
        pairs = zip(metrics["frames"], metrics[name], strict=True)
        points = np.array([pair for pair in pairs if pair[1] is not None], dtype=float)
        if len(points):
            curves[labels[name]] = Curve((points[:, 0], points[:, 1]))
    path = Path(path) if path is not None else Path(run) / "learning_curve.png"
    return plot_panels({"": curves}, path, "frames", "team return per episode")


def plot_curves(
    cells: Cells, metric: str, path: str | Path, titles: Mapping[str, str], resamples: int
) -> Path:
    """Plot learning curves, one panel per task.

    Solid: mean of the executed policy over seeds with its 95 % interval, and thin, every seed.
    Dashed: mean of the joint policy (or of an expert) that collects, where the method has one.
    """

    def curve(runs: Sequence[Run]) -> Curve:
        executed, joint = f"eval_{metric}", runs[0].joint_column(metric)
        dashed = [run.curve(joint) for run in runs] if joint != executed else []
        return mean_curve([run.curve(executed) for run in runs], dashed, resamples)

    panels = {
        task: {titles[method]: curve(runs) for method, runs in methods.items()}
        for task, methods in cells.items()
    }
    return plot_panels(panels, path, "frames", f"eval_{metric}")


def plot_intervals(
    estimates: Mapping[str, Mapping[str, Estimate]],
    path: str | Path,
    xlabel: str,
    limits: tuple[float, float] | None = None,
) -> Path:
    """Plot one panel per statistic, with one interval per method; ``estimates`` by both."""
    names = list(next(iter(estimates.values())))
    figure = _figure((1.5 + 3 * len(names), 1.2 + 0.4 * len(estimates)))
    panels = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for axes, name in zip(panels, names, strict=True):
        for height, statistics in enumerate(estimates.values()):
            shown = statistics[name]
            axes.barh(height, shown.high - shown.low, left=shown.low, alpha=0.5)
            axes.plot([shown.value] * 2, [height - 0.4, height + 0.4], color="black")
        axes.set(title=name, xlabel=xlabel, xlim=limits)
        axes.set_yticks(range(len(estimates)), list(estimates))
        axes.grid(alpha=0.3, axis="x")
    return _save(figure, path)


def plot_panels(
    panels: Mapping[str, Mapping[str, Curve]],
    path: str | Path,
    xlabel: str,
    ylabel: str = "",
    title: str = "",
) -> Path:
    """Plot panels of at most six curves; ``panels`` are curves by panel and label.

    If a panel has more curves, every curve gets its own panel, with the first curve of the
    original panel in gray as the reference.
    """
    labels = dict.fromkeys(label for curves in panels.values() for label in curves)
    colors = {label: f"C{index % 10}" for index, label in enumerate(labels)}
    drawn = [(name, curves, colors) for name, curves in panels.items()]
    split = any(_count(curves) > MAX_CURVES for curves in panels.values())
    if split:
        drawn = [panel for name in panels for panel in _split(name, panels[name], len(panels) > 1)]
    columns = min(len(drawn), 4 if split else 3)
    rows = math.ceil(len(drawn) / columns)
    width, height = (3.0, 2.2) if split else (4.2, 3.2)
    figure = _figure((1 + width * columns, 1 + height * rows))
    from matplotlib.ticker import EngFormatter  # after the error of a missing matplotlib

    share = split and len(panels) == 1
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flat)
    handles: dict[str, Any] = {}
    for index, (axes, (name, curves, color)) in enumerate(zip(grid, drawn, strict=False)):
        axes.set_title(name, fontsize=10)
        if index >= len(drawn) - columns:  # the lowest of its column
            axes.set_xlabel(xlabel)
            axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
        for label, curve in curves.items():
            handles |= _draw(axes, curve, label, color[label])
        axes.locator_params(axis="x", nbins=5)
        if xlabel == "frames":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    if split:  # the titles name the other curves
        shown = {next(iter(curves)) for curves in panels.values()} | {JOINT}
        handles = {label: handle for label, handle in handles.items() if label in shown}
    options = {"loc": "outside lower center", "ncols": 4, "frameon": False}
    figure.legend(list(handles.values()), list(handles), **options)
    figure.supylabel(ylabel, size=10)
    figure.suptitle(title)
    return _save(figure, path)


def _count(curves: Mapping[str, Curve]) -> int:
    return sum(1 if curve.joint is None else 2 for curve in curves.values())


def _split(name: str, curves: Mapping[str, Curve], several: bool) -> list[tuple]:
    """Panels of one curve each, with the first curve in gray: title, curves, colors."""
    first, reference = next(iter(curves.items()))
    gray = {first: Curve(reference.points)}
    titles = {label: f"{name}: {label}" if several else label for label in curves}
    return [
        (titles[label], gray | {label: curve}, {label: "C0", first: _GRAY})
        for label, curve in curves.items()
    ]


def _draw(axes, curve: Curve, label: str, color: str) -> dict[str, Any]:
    """Draw a curve; returns the lines of the legend by label."""
    for seed in curve.seeds:
        axes.plot(*seed, color=color, linewidth=0.5, alpha=0.4)
    if curve.band is not None:
        axes.fill_between(curve.points[0], *curve.band, color=color, alpha=0.2)
    (line,) = axes.plot(*curve.points, color=color, linewidth=2, label=label)
    if curve.joint is None:
        return {label: line}
    axes.plot(*curve.joint, "--", color=color, linewidth=1.2)
    return {label: line, JOINT: axes.plot([], [], "--", color="black", linewidth=1.2)[0]}


def _figure(size: tuple[float, float]):
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'plots need matplotlib: pip install "torchrl_agentmixer[plots]"'
        ) from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path: str | Path) -> Path:
    """Write a PNG with a palette of 256 colors, a third of the size."""
    from PIL import Image

    figure.savefig(path, dpi=100)
    picture = Image.open(path).convert("RGB")  # this method keeps the colors of thin lines
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    return Path(path)
