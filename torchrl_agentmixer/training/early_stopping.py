"""When a run may end before its budget: a target is reached, or nothing improves any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, float | None]
State = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """End a run at an evaluation where a metric is high enough, or has long not risen.

    Args:
        metric: a column of ``metrics.csv``; higher is better.
        target: stop at an evaluation with at least so much; ``None`` for no target.
        patience: stop after so many evaluations in a row without an improvement; ``None`` for
            any number.
        min_delta: an evaluation improves if it is higher than the best one before by more than
            this.

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
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"EarlyStopping: expected `patience` >= 1, got {self.patience}.")
        if self.min_delta < 0:
            raise ValueError(f"EarlyStopping: expected `min_delta` >= 0, got {self.min_delta}.")

    @property
    def enabled(self) -> bool:
        """Whether there is a target or a patience."""
        return self.target is not None or self.patience is not None

    def check(self, row: Row) -> None:
        """Raise an error if the metric is none that the run has.

        Raises:
            ValueError: naming those it has.
        """
        if self.enabled and self.metric not in row:
            raise ValueError(
                f"EarlyStopping: expected `metric` to be a column of metrics.csv, got "
                f"{self.metric!r}. There are: {', '.join(sorted(row))}."
            )

    def after(self, row: Row, state: State) -> State:
        """The state after an evaluation; an empty cell, as of no episode, changes nothing.

        Args:
            row (mapping): of metrics.
            state (mapping): before it; empty at the beginning.
        """
        value = row.get(self.metric)
        if value is None:
            return state
        best = state.get("best")
        if best is None or value > best + self.min_delta:
            return {"last": value, "best": value, "stale": 0}
        return {"last": value, "best": best, "stale": state["stale"] + 1}

    def reason(self, state: State) -> str | None:
        """Why the run ends here; ``None`` where it goes on."""
        if not state:
            return None
        if self.target is not None and state["last"] >= self.target:
            return f"`{self.metric}` {state['last']:.6g} reaches the target {self.target:.6g}"
        if self.patience is not None and state["stale"] >= self.patience:
            above = state["best"] + self.min_delta
            return f"no `{self.metric}` above {above:.6g} in {state['stale']} evaluations"
        return None
