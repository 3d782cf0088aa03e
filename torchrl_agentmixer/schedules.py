"""Schedules of coefficients over training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torchrl_agentmixer._choices import check_known


@dataclass(frozen=True)
class Schedule:
    """Linear schedule of a coefficient from ``start`` to ``end``.

    Args:
        start: value until the fraction ``since`` of training.
        end: value from the fraction ``until`` of training.
        until: fraction of training in (0, 1].
        since: fraction of training in [0, ``until``]. If both are equal, the value changes at once.

    Raises:
        ValueError: if ``until`` or ``since`` is out of range.

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
    since: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(f"Schedule: expected `until` in (0, 1], got {self.until}.")
        if not 0 <= self.since <= self.until:
            raise ValueError(
                f"Schedule: expected `since` in [0, `until` {self.until}], got {self.since}."
            )

    def __call__(self, progress: float) -> float:
        """Value at the fraction ``progress`` in [0, 1] of training."""
        if progress >= self.until:
            return self.end
        if progress <= self.since:
            return self.start
        share = (progress - self.since) / (self.until - self.since)
        return self.start + (self.end - self.start) * share


Scheduled = float | Schedule | Mapping[str, Any]


def as_schedule(value: Scheduled) -> Schedule:
    """Convert a number (constant), the arguments of a schedule, or a schedule to a schedule.

    Examples:
        >>> as_schedule(0.3)(0.5), as_schedule({"start": 1.0, "end": 0.0})(0.5)
        (0.3, 0.5)
    """
    value = schedule_or_number(value)
    return value if isinstance(value, Schedule) else Schedule(float(value), float(value))


def schedule_or_number(value: Scheduled) -> float | Schedule:
    """Convert the arguments of a schedule; return numbers and schedules unchanged.

    Raises:
        ValueError: for an unknown argument.

    Examples:
        >>> schedule_or_number(0.3)
        0.3
    """
    if not isinstance(value, Mapping):
        return value
    check_known("argument of a schedule", value, [field.name for field in fields(Schedule)])
    return Schedule(**value)
