"""Error messages for unknown names and for values out of range."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any


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


def check_known(kind: str, names: Iterable[str], available: Collection[str]) -> None:
    """Raise a ValueError for the first of ``names`` that is not available.

    Examples:
        >>> check_known("option", ["viw"], ["view"])
        Traceback (most recent call last):
            ...
        ValueError: unknown option 'viw'; did you mean 'view'? Available: view.
    """
    for name in names:
        if name not in available:
            raise ValueError(unknown_name(kind, name, available))


def check_memory(owner: str, entries: Mapping[Any, object]) -> None:
    """Raise a KeyError for entries that are ``None`` because the environment has no memory.

    Examples:
        >>> check_memory("RecurrentActor", {"is_init": True})
    """
    for key, value in entries.items():
        if value is None:
            raise KeyError(
                f"{owner}: expected the entry {key!r}, got none: wrap the environment by "
                "`torchrl_agentmixer.envs.with_memory(env, policy)`."
            )


def check_values(owner: str, **values: tuple[object, bool, str]) -> None:
    """Raise a ValueError for the first value out of range, given as (value, valid, expected).

    Examples:
        >>> check_values("PPOConfig", gamma=(1.5, 0 < 1.5 <= 1, "in (0, 1]"))
        Traceback (most recent call last):
            ...
        ValueError: PPOConfig: expected `gamma` in (0, 1], got 1.5.
    """
    for name, (value, valid, expected) in values.items():
        if not valid:
            raise ValueError(f"{owner}: expected `{name}` {expected}, got {value}.")
