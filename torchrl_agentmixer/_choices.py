"""Errors for a name that is not among those that exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: object, available: Iterable[str]) -> str:
    """A message that names what came, what exists, and the nearest match.

    Examples:
        >>> unknown_name("algorithm", "mapo", ["ippo", "mappo"])
        "unknown algorithm 'mapo'; did you mean 'mappo'? Available: ippo, mappo."
    """
    available = sorted(available)
    near = difflib.get_close_matches(str(name), available, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Available: {', '.join(available) or 'none'}."
