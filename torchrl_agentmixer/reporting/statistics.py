"""Statistics over seeds and tasks, with stratified bootstrap intervals, by ``rliable``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchrl_agentmixer.reporting.runs import Run

# Points of a sample-efficiency curve, as shares of the budget.
SHARES = np.arange(1, 21) / 20


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; numbers, or arrays of one shape.

    Examples:
        >>> f"{Estimate(np.array(1.0), np.array(0.5), np.array(2.0)):.1f}"
        '1.0 [0.5, 2.0]'
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __format__(self, spec: str) -> str:
        value, low, high = (format(float(x), spec) for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def by_task(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Runs by task and method, in the order of their names, each by seed."""
    cells: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: (run.task, run.method, run.seed)):
        cells.setdefault(run.task, {}).setdefault(run.method, []).append(run)
    return cells


def final_scores(runs: Sequence[Run], column: str) -> np.ndarray:
    """The last evaluation of each run, ``[runs]``."""
    return np.array([run.final(column) for run in runs])


def estimate(
    samples: np.ndarray | Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray | float],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A statistic with a stratified bootstrap interval over runs (Agarwal et al. 2021,
    `arXiv 2108.13264 <https://arxiv.org/abs/2108.13264>`_), by ``rliable``.

    Args:
        samples (array or sequence of arrays): ``[runs, tasks, ...]``; runs are drawn again within
            each task, and within each entry of further axes: intervals along a curve are pointwise.
            Several arrays are drawn independently and are arguments of their own.
        statistic (callable): maps them to a number or an array ``[k]``; one entry is a number.

    Keyword Args:
        resamples (int): bootstrap draws.
        seed (int): of the draws.

    Raises:
        ImportError: without rliable, with the command that installs it.

    Examples:
        >>> import numpy as np
        >>> result = estimate(np.array([[1.0], [2.0], [3.0]]), np.mean, resamples=50)
        >>> float(result.value), bool(result.low < 2.0 < result.high)
        (2.0, True)
    """
    library, _ = _rliable()
    values = samples if isinstance(samples, np.ndarray) else list(samples)
    # rliable draws from NumPy's global generator, whatever `random_state` it is given.
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


def cell_statistics(scores: np.ndarray, *, resamples: int = 2000) -> dict[str, Estimate]:
    """Mean, median and interquartile mean of one task's runs ``[runs]``.

    The median is over runs. Over tasks, rliable's median is another one: of the tasks' means.

    Examples:
        >>> statistics = cell_statistics(np.array([0.0, 1.0, 2.0, 9.0]), resamples=20)
        >>> {name: float(estimate.value) for name, estimate in statistics.items()}
        {'mean': 3.0, 'median': 1.5, 'IQM': 1.5}
    """
    _, metrics = _rliable()
    statistics = {"mean": np.mean, "median": np.median, "IQM": metrics.aggregate_iqm}
    return {
        name: estimate(scores[:, None], statistic, resamples=resamples)
        for name, statistic in statistics.items()
    }


def aggregate_statistics(scores: np.ndarray, *, resamples: int = 2000) -> dict[str, Estimate]:
    """Mean, median of the tasks' means, and interquartile mean of ``[runs, tasks]``.

    Examples:
        >>> scores = np.array([[0.0, 5.0, 7.0], [2.0, 5.0, 9.0]])
        >>> float(aggregate_statistics(scores, resamples=20)["median of task means"].value)
        5.0
    """
    _, metrics = _rliable()
    statistics = {
        "mean": metrics.aggregate_mean,
        "median of task means": metrics.aggregate_median,
        "IQM": metrics.aggregate_iqm,
    }
    return {
        name: estimate(scores, statistic, resamples=resamples)
        for name, statistic in statistics.items()
    }


def probability_of_improvement(x: np.ndarray, y: np.ndarray, *, resamples: int = 2000) -> Estimate:
    """P(X > Y), ties counted half, averaged over tasks; of scores ``[runs, tasks]``.

    Examples:
        >>> x, y = np.array([[1.0], [3.0]]), np.array([[2.0], [3.0]])
        >>> float(probability_of_improvement(x, y, resamples=20).value)  # of 4 pairs: 1 and a tie
        0.375
    """
    _, metrics = _rliable()
    return estimate([x, y], metrics.probability_of_improvement, resamples=resamples)


def performance_profile(
    scores: np.ndarray, thresholds: np.ndarray, *, resamples: int = 2000
) -> Estimate:
    """Share of runs of all tasks that score above each threshold; of scores ``[runs, tasks]``.

    Examples:
        >>> scores, thresholds = np.array([[0.2, 0.6]]), np.array([0.0, 0.5, 1.0])
        >>> performance_profile(scores, thresholds, resamples=20).value.tolist()
        [1.0, 0.5, 0.0]
    """
    library, _ = _rliable()
    return estimate(
        scores, lambda draw: library.score_distributions(draw, thresholds), resamples=resamples
    )


def sample_efficiency(curves: np.ndarray, *, resamples: int = 2000) -> Estimate:
    """Interquartile mean over runs and tasks at each point; of ``[runs, tasks, points]``.

    Examples:
        >>> curves = np.array([[[0.0, 1.0]], [[2.0, 5.0]]])  # two runs of a task, at two points
        >>> sample_efficiency(curves, resamples=20).value.tolist()
        [1.0, 3.0]
    """
    _, metrics = _rliable()

    def iqm(draw: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(draw[..., k]) for k in range(draw.shape[-1])])

    return estimate(curves, iqm, resamples=resamples)


def at_shares(run: Run, column: str, shares: np.ndarray = SHARES) -> np.ndarray:
    """The last evaluation at or before each share of the budget, ``[shares]``; NaN before any."""
    frames, values = run.curve(column)
    index = np.searchsorted(frames, np.round(shares * run.total_frames), side="right") - 1
    # A batch may end past the budget: that evaluation is the last one's.
    index[shares >= 1] = len(values) - 1
    return np.where(index >= 0, values[index.clip(0)], np.nan)


@dataclass(frozen=True)
class Normalized:
    """Scores that can be averaged over tasks.

    Each task's are scaled to [0, 1] by the lowest and the highest evaluation of all its runs, as
    marl-eval does (Gorsane et al. 2022, `arXiv 2209.10485 <https://arxiv.org/abs/2209.10485>`_).

    Args:
        curves: of each method, ``[runs, tasks, shares]``; the last share is the end of training.
        shares: of the budget, from where all runs have an evaluation.
        notes: of methods that are not here with all their runs. rliable draws from arrays, as
            many runs in every task: the lowest seeds of each; and no method that lacks a task.
    """

    curves: dict[str, np.ndarray]
    shares: np.ndarray
    notes: dict[str, str]

    @property
    def final(self) -> dict[str, np.ndarray]:
        """Scores at the end, ``[runs, tasks]``, of each method."""
        return {method: curves[..., -1] for method, curves in self.curves.items()}


def normalize(cells: Mapping[str, Mapping[str, Sequence[Run]]], column: str) -> Normalized:
    """Scale every task to [0, 1], and put methods with all tasks into arrays."""
    methods = sorted({method for task in cells.values() for method in task})
    counts = {m: {task: len(cells[task].get(m, ())) for task in cells} for m in methods}
    notes = {}
    for method, count in counts.items():
        fewest, seeds = min(count.values()), ", ".join(f"{task} {n}" for task, n in count.items())
        if not fewest:
            notes[method] = f"left out, for it lacks a task (seeds: {seeds})"
        elif max(count.values()) > fewest:
            notes[method] = f"the {fewest} lowest seeds of each task (of {seeds})"
    curves: dict[str, list[np.ndarray]] = {m: [] for m in methods if min(counts[m].values())}
    for task in cells.values():
        values = np.concatenate([run.curve(column)[1] for runs in task.values() for run in runs])
        low, high = values.min(), values.max()
        for method, tasks in curves.items():
            fewest = min(counts[method].values())
            points = np.stack([at_shares(run, column) for run in task[method][:fewest]])
            tasks.append((points - low) / (high - low if high > low else 1.0))
    stacked = {method: np.stack(tasks, 1) for method, tasks in curves.items()}
    known = np.ones(len(SHARES), dtype=bool)
    for array in stacked.values():
        known &= ~np.isnan(array).any((0, 1))
    return Normalized({m: a[..., known] for m, a in stacked.items()}, SHARES[known], notes)


def _rliable():
    try:
        from rliable import library, metrics
    except ImportError as error:
        raise ImportError(
            'reports need rliable: pip install "torchrl_agentmixer[report]"'
        ) from error
    return library, metrics
