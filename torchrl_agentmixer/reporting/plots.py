"""Learning curves, of one run and of many, and plots of statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchrl_agentmixer.reporting.statistics import Estimate, at_shares, estimate
from torchrl_agentmixer.reporting.tables import read_metrics

if TYPE_CHECKING:
    from torchrl_agentmixer.reporting.runs import Run

Cells = Mapping[str, Mapping[str, Sequence["Run"]]]

_CURVES = {
    "return": "joint policy, training",
    "eval_joint_return": "joint policy, mode",
    "eval_return": "decentralized policy, mode",
}


def plot_learning_curve(run: str | Path, path: str | Path | None = None) -> Path:
    """Draw a run's returns, of the joint and of the decentralized policy, over frames.

    Args:
        run (path): a run directory.
        path (path, optional): of the PNG; ``learning_curve.png`` in the run directory by default.

    Returns:
        Path: of the PNG.

    Raises:
        FileNotFoundError: if the folder holds no metrics.
        ImportError: without matplotlib, with the command that installs it.
    """
    figure = _figure((6.4, 4.0))
    metrics = read_metrics(run)
    axes = figure.add_subplot()
    for name, label in _CURVES.items():
        if name not in metrics:
            continue
        points = [
            (frames, value)
            for frames, value in zip(metrics["frames"], metrics[name], strict=True)
            if value is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.6)
    axes.set(xlabel="frames", ylabel="team return of an episode")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path = Path(path) if path is not None else Path(run) / "learning_curve.png"
    figure.savefig(path, dpi=150)
    return path


def plot_curves(
    cells: Cells,
    column: str,
    path: str | Path,
    *,
    titles: Mapping[str, str] | None = None,
    resamples: int = 2000,
) -> Path:
    """A grid of learning curves, a panel for each task, in the layout of Figure 3.

    Of each method the mean over seeds with its 95 % bootstrap interval, and thin, every seed. The
    legend says how many seeds there are.

    Args:
        cells (mapping): runs by task and method, as :func:`by_task` returns them.
        column (str): of ``metrics.csv``.
        path (path): of the PNG.

    Keyword Args:
        titles (mapping, optional): of methods, their names by default.
        resamples (int): bootstrap draws.
    """
    figure = _figure_of(cells)
    for axes, (_, methods), colors in _panels(figure, cells):
        for method, runs in methods.items():
            for run in runs:
                axes.plot(*run.curve(column), color=colors[method], linewidth=0.5, alpha=0.4)
            frames, mean = _mean_curve(runs, column, resamples)
            label = f"{(titles or {}).get(method, method)} ({len(runs)})"
            axes.plot(frames, mean.value, color=colors[method], linewidth=2, label=label)
            axes.fill_between(frames, mean.low, mean.high, color=colors[method], alpha=0.2)
        axes.set(xlabel="frames", ylabel=column)
        axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def plot_gap(
    cells: Cells,
    column: str,
    joint_column: str,
    path: str | Path,
    *,
    titles: Mapping[str, str] | None = None,
) -> Path:
    """Means over seeds of joint and decentralized policy, in the layout of Figure 4.

    Dashed, the policy that collects (the joint policy, or an expert of full information); solid,
    the one that is executed. What is between them is what decentralization costs.

    Args:
        cells (mapping): runs by task and method, as :func:`by_task` returns them.
        column (str): of the executed policy.
        joint_column (str): of the policy that collects.
        path (path): of the PNG.

    Keyword Args:
        titles (mapping, optional): of methods, their names by default.
    """
    figure = _figure_of(cells)
    for axes, (_, methods), colors in _panels(figure, cells):
        for method, runs in methods.items():
            title = (titles or {}).get(method, method)
            for name, style, what in ((column, "-", "executed"), (joint_column, "--", "joint")):
                if all(name in run.metrics for run in runs):
                    frames, mean = _mean_curve(runs, name)
                    label = f"{title}, {what}"
                    axes.plot(frames, mean.value, style, color=colors[method], label=label)
        axes.set(xlabel="frames", ylabel=column)
        axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def plot_bands(
    x: np.ndarray,
    estimates: Mapping[str, Estimate],
    path: str | Path,
    *,
    xlabel: str,
    ylabel: str,
) -> Path:
    """Estimates over ``x`` with their intervals: performance profiles, sample efficiency.

    Args:
        x (array): ``[points]``.
        estimates (mapping): of each method, arrays ``[points]``.
        path (path): of the PNG.

    Keyword Args:
        xlabel (str): of the axis.
        ylabel (str): of the axis.

    Examples:
        >>> import tempfile
        >>> x = np.linspace(0, 1, 5)
        >>> path = Path(tempfile.mkdtemp()) / "bands.png"
        >>> band = Estimate(x, x - 0.1, x + 0.1)
        >>> plot_bands(x, {"mappo": band}, path, xlabel="frames", ylabel="score").exists()
        True
    """
    figure = _figure((6.4, 4.0))
    axes = figure.add_subplot()
    for name, band in estimates.items():
        (line,) = axes.plot(x, band.value, label=name, linewidth=1.6)
        axes.fill_between(x, band.low, band.high, color=line.get_color(), alpha=0.2)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _save(figure, path)


def plot_intervals(
    estimates: Mapping[str, Mapping[str, Estimate]],
    path: str | Path,
    *,
    xlabel: str,
    limits: tuple[float, float] | None = None,
) -> Path:
    """A panel for each statistic, and in it a bar with its interval for each row.

    Args:
        estimates (mapping): numbers by row and statistic.
        path (path): of the PNG.

    Keyword Args:
        xlabel (str): of the axes.
        limits (tuple of float, optional): of the axes.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "intervals.png"
        >>> mean = Estimate(*np.array([0.5, 0.4, 0.7]))
        >>> plot_intervals({"mappo": {"mean": mean}}, path, xlabel="score").exists()
        True
    """
    names = list(next(iter(estimates.values())))
    figure = _figure((1.5 + 3 * len(names), 1.2 + 0.4 * len(estimates)))
    panels = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for axes, name in zip(panels, names, strict=True):
        for height, (row, statistics) in enumerate(estimates.items()):
            shown = statistics[name]
            axes.barh(height, shown.high - shown.low, left=shown.low, alpha=0.5, label=row)
            axes.plot([shown.value] * 2, [height - 0.4, height + 0.4], color="black")
        axes.set(title=name, xlabel=xlabel, xlim=limits)
        axes.set_yticks(range(len(estimates)), list(estimates))
        axes.grid(alpha=0.3, axis="x")
    return _save(figure, path)


def _mean_curve(
    runs: Sequence[Run], column: str, resamples: int = 2
) -> tuple[np.ndarray, Estimate]:
    """Frames, and the mean over runs at them; where evaluations differ, at shares of the budget."""
    curves = [run.curve(column) for run in runs]
    frames = curves[0][0]
    if all(np.array_equal(frames, other) for other, _ in curves):
        values = np.stack([values for _, values in curves])
    else:
        values = np.stack([at_shares(run, column) for run in runs])
        frames = np.arange(1, values.shape[1] + 1) / values.shape[1] * runs[0].total_frames
        known = ~np.isnan(values).any(0)
        frames, values = frames[known], values[:, known]
    return frames, estimate(values[:, None], lambda draw: draw.mean((0, 1)), resamples=resamples)


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


def _figure_of(cells: Cells):
    columns = min(len(cells), 3)
    return _figure((1 + 4.2 * columns, 3.6 * math.ceil(len(cells) / columns)))


def _panels(figure, cells: Cells) -> Iterator[tuple]:
    """Axes, task and methods of each panel, and one color for each method in all of them."""
    methods = sorted({method for task in cells.values() for method in task})
    colors = {method: f"C{index % 10}" for index, method in enumerate(methods)}
    columns = min(len(cells), 3)
    axes = figure.subplots(math.ceil(len(cells) / columns), columns, squeeze=False).flat
    for task in cells.items():
        panel = next(axes)
        panel.set_title(task[0], fontsize=10)
        panel.grid(alpha=0.3)
        yield panel, task, colors
    for panel in axes:
        panel.set_axis_off()


def _save(figure, path: str | Path) -> Path:
    figure.savefig(path, dpi=120)
    return Path(path)
