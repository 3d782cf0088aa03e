"""Annealing of a coefficient over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Schedule:
    """A coefficient that goes from ``start`` to ``end`` and stays there.

    Args:
        start: value until the share ``since`` of training.
        end: value from the share ``until`` of training on.
        until: share of training, in (0, 1], at which ``end`` is reached.
        shape: ``"linear"`` or ``"cosine"``.
        since: share of training, in [0, ``until``], at which ``start`` is left; with ``until`` the
            same, ``end`` follows ``start`` at once.

    Raises:
        ValueError: for shares in no such order, or another shape.

    Examples:
        >>> anneal = Schedule(1.0, 0.0, until=0.5)
        >>> anneal(0.0), anneal(0.25), anneal(0.9)
        (1.0, 0.5, 0.0)
        >>> Schedule(1.0, 0.2, since=0.5)(0.75)
        0.6
    """

    start: float
    end: float
    until: float = 1.0
    shape: Literal["linear", "cosine"] = "linear"
    since: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(f"Schedule: expected `until` in (0, 1], got {self.until}.")
        if not 0 <= self.since <= self.until:
            raise ValueError(
                f"Schedule: expected `since` in [0, `until` {self.until}], got {self.since}."
            )
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"Schedule: expected `shape` linear or cosine, got {self.shape!r}.")

    def __call__(self, progress: float) -> float:
        """Value at ``progress`` in [0, 1] of training."""
        if progress >= self.until:
            return self.end
        if progress <= self.since:
            return self.start
        share = (progress - self.since) / (self.until - self.since)
        if self.shape == "cosine":
            share = 0.5 * (1 - math.cos(math.pi * share))
        return self.start + (self.end - self.start) * share


def as_schedule(value: float | Schedule | Mapping[str, Any]) -> Schedule:
    """A schedule from one, from its arguments, or from a number, which stays as it is.

    Examples:
        >>> as_schedule(0.3)(0.5), as_schedule({"start": 1.0, "end": 0.0})(0.5)
        (0.3, 0.5)
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Mapping):
        return Schedule(**value)
    return Schedule(float(value), float(value))
