"""Errors for optional dependencies that are missing."""

from __future__ import annotations

from importlib.util import find_spec


def require_vmas() -> None:
    """Raise an ImportError with the command that installs VMAS, if it is missing."""
    if find_spec("vmas") is None:
        raise ImportError('VMAS environments need: pip install "torchrl_agentmixer[vmas]"')


def require_mamujoco() -> None:
    """Raise an ImportError with the command that installs MA-MuJoCo, if it is missing."""
    if find_spec("gymnasium_robotics") is None:
        raise ImportError('MA-MuJoCo environments need: pip install "torchrl_agentmixer[mamujoco]"')


def require_smacv2() -> None:
    """Raise an ImportError that says what SMACv2 needs, if its package is missing."""
    if find_spec("smacv2") is None:
        raise ImportError(
            "SMACv2 environments need the package, pip install "
            "git+https://github.com/oxwhirl/smacv2.git, and the game StarCraft II with the SMAC "
            "maps, whose folder SC2PATH names: docs/smacv2.md"
        )


def require_smax() -> None:
    """Raise an ImportError with the command that installs JaxMARL, if it is missing."""
    if find_spec("jaxmarl") is None:
        raise ImportError('SMAX environments need: pip install "torchrl_agentmixer[smax]"')
