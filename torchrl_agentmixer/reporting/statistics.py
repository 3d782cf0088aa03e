"""Statistics over seeds and tasks, with stratified bootstrap intervals by ``rliable``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchrl_agentmixer.reporting.runs import Run

SHARES = np.arange(1, 21) / 20  # of the budget: points of a sample-efficiency curve
Points = tuple[np.ndarray, np.ndarray]  # x and y, each [points]
Cells = Mapping[str, Mapping[str, Sequence[Run]]]  # runs by task and method


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % interval: numbers, formatted as ``1.0 [0.5, 2.0]``, or arrays."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __format__(self, spec: str) -> str:
        value, low, high = (format(float(x), spec) for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def by_task(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Group runs by task and method, in alphabetical order, and sort each group by seed."""
    cells: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: (run.task, run.method, run.seed)):
        cells.setdefault(run.task, {}).setdefault(run.method, []).append(run)
    return cells


def final_scores(runs: Sequence[Run], column: str) -> np.ndarray:
    """Last evaluation of each run, ``[runs]``."""
    return np.array([run.final(column) for run in runs])


def estimate(
    samples: np.ndarray | Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray | float],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Compute a statistic with a stratified bootstrap interval over runs.

    The method is that of Agarwal et al. 2021
    (`arXiv 2108.13264 <https://arxiv.org/abs/2108.13264>`_), by ``rliable``. ``samples`` are
    ``[runs, tasks, ...]``, one array or several that are resampled independently. Runs are
    resampled within each task and each entry of further axes: intervals along a curve are
    pointwise. ``statistic`` maps the arrays to a number or an array ``[k]``.
    """
    library, _ = _rliable()
    values = samples if isinstance(samples, np.ndarray) else list(samples)
    # rliable uses NumPy's global generator, whatever `random_state` it is given.
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        points, intervals = library.get_interval_estimates(
            {"": values}, lambda *arrays: np.atleast_1d(statistic(*arrays)), reps=resamples
        )
    finally:
        np.random.set_state(state)
    point, (low, high) = points[""], intervals[""]
    return Estimate(*(x[0] if len(point) == 1 else x for x in (point, low, high)))


def summary(scores: np.ndarray, *, resamples: int = 2000) -> dict[str, Estimate]:
    """Mean, median and interquartile mean (IQM) of ``[runs, tasks]``.

    The median of several tasks is that of their means; the median of one task is over its runs.
    """
    _, metrics = _rliable()
    median = metrics.aggregate_median if scores.shape[1] > 1 else np.median
    statistics = {"mean": np.mean, "median": median, "IQM": metrics.aggregate_iqm}
    return {n: estimate(scores, s, resamples=resamples) for n, s in statistics.items()}


def probability_of_improvement(x: np.ndarray, y: np.ndarray, *, resamples: int = 2000) -> Estimate:
    """P(X > Y) with ties counted half, averaged over tasks; of scores ``[runs, tasks]``."""
    return estimate(
        [x, y], lambda a, b: np.sign(a[:, None] - b).mean() / 2 + 0.5, resamples=resamples
    )


def performance_profile(
    scores: np.ndarray, thresholds: np.ndarray, *, resamples: int = 2000
) -> Estimate:
    """Share of the runs of all tasks above each threshold; of scores ``[runs, tasks]``."""
    above = lambda draw: (draw[..., None] > thresholds).mean((0, 1))  # noqa: E731
    return estimate(scores, above, resamples=resamples)


def sample_efficiency(curves: np.ndarray, *, resamples: int = 2000) -> Estimate:
    """Interquartile mean over runs and tasks at each point; of ``[runs, tasks, points]``."""
    iqm = _rliable()[1].aggregate_iqm
    statistic = lambda draw: np.array([iqm(x) for x in np.moveaxis(draw, -1, 0)])  # noqa: E731
    return estimate(curves, statistic, resamples=resamples)


def values_at(frames: np.ndarray, values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Value of the last evaluation at or before each point; NaN before the first evaluation."""
    index = np.searchsorted(frames, points, side="right") - 1
    return np.where(index >= 0, values[index.clip(0)], np.nan)


def aligned(curves: Sequence[Points]) -> Points:
    """Common frames ``[points]`` of several curves, and their values ``[curves, points]``.

    If the curves were evaluated at different frames, they are read at 20 equal steps up to the
    last frame that all of them reach.
    """
    frames = curves[0][0]
    if all(np.array_equal(frames, other) for other, _ in curves):
        return frames, np.stack([values for _, values in curves])
    frames = np.round(SHARES * min(frames[-1] for frames, _ in curves))
    values = np.stack([values_at(*curve, frames) for curve in curves])
    known = ~np.isnan(values).any(0)
    return frames[known], values[:, known]


@dataclass(frozen=True)
class Normalized:
    """Scores that can be averaged over tasks.

    Each task is scaled to [0, 1] by the lowest and highest evaluation of all its runs, as in
    marl-eval (Gorsane et al. 2022, `arXiv 2209.10485 <https://arxiv.org/abs/2209.10485>`_).
    rliable needs the same number of runs in every task: the lowest seeds are used, and a method
    that lacks a task is left out.
    """

    curves: dict[str, np.ndarray]  # [runs, tasks, shares] by method
    shares: np.ndarray  # of the budget, from the first at which all runs have an evaluation
    notes: dict[str, str]  # runs that are left out, by method

    @property
    def final(self) -> dict[str, np.ndarray]:
        """Scores at the end of training, ``[runs, tasks]`` by method."""
        return {method: curves[..., -1] for method, curves in self.curves.items()}


def normalize(cells: Cells, column: str) -> Normalized:
    """Scale every task to [0, 1] and stack the runs of the methods that have all tasks."""
    used, notes = {}, {}
    for method in sorted({method for task in cells.values() for method in task}):
        count = {task: len(cells[task].get(method, ())) for task in cells}
        fewest, seeds = min(count.values()), ", ".join(f"{task} {n}" for task, n in count.items())
        if not fewest:
            notes[method] = f"left out because it lacks a task (seeds: {seeds})"
            continue
        used[method] = fewest
        if max(count.values()) > fewest:
            notes[method] = f"the {fewest} lowest seeds of each task (of {seeds})"
    scaled: dict[str, list[np.ndarray]] = {method: [] for method in used}
    for task in cells.values():
        values = np.concatenate([run.curve(column)[1] for runs in task.values() for run in runs])
        low, high = values.min(), values.max()
        for method, fewest in used.items():
            points = np.stack([_at_shares(run, column) for run in task[method][:fewest]])
            scaled[method].append((points - low) / (high - low if high > low else 1.0))
    stacked = {method: np.stack(tasks, 1) for method, tasks in scaled.items()}
    known = np.ones(len(SHARES), dtype=bool)
    for array in stacked.values():
        known &= ~np.isnan(array).any((0, 1))
    return Normalized({m: a[..., known] for m, a in stacked.items()}, SHARES[known], notes)


def _at_shares(run: Run, column: str) -> np.ndarray:
    points = np.round(SHARES * run.total_frames)
    points[-1] = np.inf  # the last batch may end after the budget
    return values_at(*run.curve(column), points)


def _rliable():
    try:
        from rliable import library, metrics
    except ImportError as error:
        raise ImportError(
            'reports need rliable: pip install "torchrl_agentmixer[report]"'
        ) from error
    return library, metrics
