"""Global random generators: their states, and code that leaves them unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torchrl.checkpoint import GlobalRNGState

State = dict[str, Any]


def random_state() -> State:
    """States of the random generators of Python, numpy and torch (CPU and accelerator)."""
    return GlobalRNGState().state_dict()


def load_random_state(state: Mapping[str, Any]) -> None:
    """Restore a :func:`random_state`."""
    GlobalRNGState().load_state_dict(state)


@contextmanager
def preserved_random_state(seed: int | None = None) -> Iterator[None]:
    """Context manager that restores all global random generators at its end.

    Args:
        seed (int, optional): seed of the generators inside.

    Examples:
        >>> torch.manual_seed(0).initial_seed()
        0
        >>> with preserved_random_state():
        ...     first = torch.rand(1), np.random.rand()
        >>> (torch.rand(1), np.random.rand()) == first
        True
    """
    state = random_state()
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        yield
    finally:
        load_random_state(state)
