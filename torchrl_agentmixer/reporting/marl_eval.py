"""Export to the JSON format of marl-eval, a tool for standardized evaluations."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from torchrl_agentmixer.reporting.runs import Run


def marl_eval_data(runs: Sequence[Run]) -> dict[str, Any]:
    """Convert all evaluations of the executed policies to the JSON structure of marl-eval.

    The structure is "Data Structure for Raw Experiment data" of the README of marl-eval
    (https://github.com/instadeepai/marl-eval; Gorsane et al. 2022, `arXiv 2209.10485
    <https://arxiv.org/abs/2209.10485>`_): environment,
    task, algorithm, run, and per evaluation ``"step_<k>"`` with the ``"return"`` of every episode,
    and the mean ``"score"`` and ``"win_rate"`` where they exist.

    ``"absolute_metrics"`` are the mean of the best evaluation. marl-eval defines them on ten times
    as many new episodes, which a run directory does not have: these values are biased upwards.

    Args:
        runs (sequence of Run): as :func:`read_runs` returns them.

    Raises:
        ValueError: for a run whose ``evaluation.csv`` is missing or truncated.

    Examples:
        >>> marl_eval_data([])
        {}
    """
    data: dict[str, Any] = {}
    for run in runs:
        environment, _, task = str(run.config["env"]["name"]).partition("/")
        name = task if run.task == run.config["env"]["name"] else run.task
        methods = data.setdefault(environment, {}).setdefault(name or environment, {})
        methods.setdefault(run.method, {})[f"seed_{run.seed}"] = _run_data(run)
    return data


def _run_data(run: Run) -> dict[str, Any]:
    returns = _episode_returns(run)
    team = {
        name: dict(zip(*run.curve(f"eval_{name}"), strict=True))
        for name in ("score", "win_rate")
        if f"eval_{name}" in run.metrics
    }
    steps: dict[str, Any] = {}
    for index, (frames, values) in enumerate(returns.items(), 1):
        means = {name: [float(by_frame[frames])] for name, by_frame in team.items()}
        steps[f"step_{index}"] = {"step_count": frames, "return": values, **means}
    best = {
        name: [max(sum(step[name]) / len(step[name]) for step in steps.values())]
        for name in ("return", *team)
    }
    return {**steps, "absolute_metrics": best}


def _episode_returns(run: Run) -> dict[int, list[float]]:
    path = run.path / "evaluation.csv"
    returns: dict[int, list[float]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                returns.setdefault(int(row["frames"]), []).append(float(row["return"]))
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the frames and return of every evaluation episode, got {error!r}."
        ) from error
    evaluated = [int(frames) for frames in run.curve("eval_return")[0]]
    if list(returns) != evaluated:
        raise ValueError(
            f"{path}: expected episodes of the evaluations in metrics.csv, at frames {evaluated}, "
            f"got {list(returns)}."
        )
    return returns
