"""Error messages for unknown names and for values out of range."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: object, available: Iterable[str]) -> str:
    """Message for an unknown name: the name, the nearest match, and all available names.

    Examples:
        >>> unknown_name("algorithm", "mapo", ["ippo", "mappo"])
        "unknown algorithm 'mapo'; did you mean 'mappo'? Available: ippo, mappo."
    """
    available = sorted(available)
    near = difflib.get_close_matches(str(name), available, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Available: {', '.join(available) or 'none'}."


def check_at_least(owner: str, least: float, **values: float) -> None:
    """Raise a ValueError for the first of ``values`` that is less than ``least``.

    Examples:
        >>> check_at_least("RecallEnv", 1, num_envs=4, n_agents=0)
        Traceback (most recent call last):
            ...
        ValueError: RecallEnv: expected `n_agents` >= 1, got 0.
    """
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{owner}: expected `{name}` >= {least}, got {value}.")
