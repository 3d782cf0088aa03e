"""Early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchrl_agentmixer._fields import check_fields

Metrics = Mapping[str, float | None]
State = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """End training at an evaluation that reaches a target, or after several without improvement.

    Args:
        metric: column of ``metrics.csv``; higher is better.
        target: smallest value that ends training; ``None`` for no target.
        patience: number of evaluations in a row without an improvement that ends training;
            ``None`` for no limit.
        min_delta: an evaluation improves if it exceeds the best one so far by more than this.

    Raises:
        ValueError: for a ``patience`` below 1 or a negative ``min_delta``.

    Examples:
        >>> stopping, state = EarlyStopping(patience=2), {}
        >>> for value in (1.0, 3.0, 2.0, 3.0):
        ...     state = stopping.after({"eval_return": value}, state)
        >>> stopping.reason(state)
        'no `eval_return` above 3 in 2 evaluations'
    """

    metric: str = "eval_return"
    target: float | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, {"patience": "[1, inf)", "min_delta": "[0, inf)"})

    def check(self, row: Metrics) -> None:
        """Raise a ``ValueError`` if the metric is not in ``row`` and would be needed."""
        enabled = self.target is not None or self.patience is not None
        if enabled and self.metric not in row:
            raise ValueError(
                f"EarlyStopping: expected `metric` to be a column of metrics.csv, got "
                f"{self.metric!r}. Columns: {', '.join(sorted(row))}."
            )

    def after(self, row: Metrics, state: State) -> State:
        """State after an evaluation with metrics ``row``; the initial state is empty.

        A missing value leaves the state unchanged.
        """
        value = row.get(self.metric)
        if value is None:
            return state
        best = state.get("best")
        if best is None or value > best + self.min_delta:
            return {"last": value, "best": value, "stale": 0}
        return {"last": value, "best": best, "stale": state["stale"] + 1}

    def reason(self, state: State) -> str | None:
        """Why training ends in this state; ``None`` where it continues."""
        if not state:
            return None
        if self.target is not None and state["last"] >= self.target:
            return f"`{self.metric}` {state['last']:.6g} reaches the target {self.target:.6g}"
        if self.patience is not None and state["stale"] >= self.patience:
            above = state["best"] + self.min_delta
            return f"no `{self.metric}` above {above:.6g} in {state['stale']} evaluations"
        return None
