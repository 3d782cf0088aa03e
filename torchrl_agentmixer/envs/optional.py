"""Errors for optional dependencies that are missing."""

from __future__ import annotations

from importlib.util import find_spec


def require_vmas() -> None:
    """Raise an ImportError with the command that installs VMAS, if it is missing."""
    if find_spec("vmas") is None:
        raise ImportError('VMAS environments need: pip install "torchrl_agentmixer[vmas]"')
