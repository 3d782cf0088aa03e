"""Optional dependencies: lazy imports, and errors that name the install command."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

# Classes that need an optional dependency: the module of this package that has them.
CLASSES = {
    "MaMujocoEnv": "mamujoco",
    "PredatorPreyScenario": "predator_prey",
    "SMACv2TeamEnv": "smacv2",
    "SmaxEnv": "smax",
    "VmasTeamEnv": "vmas",
}
# Classes whose modules import the dependency of a family.
_IMPORT_NEEDS = {"PredatorPreyScenario": "vmas", "SmaxEnv": "smax"}
# Families of environments: the module that each needs.
MODULES = {
    "mamujoco": "gymnasium_robotics",
    "pettingzoo": "mpe2",
    "smacv2": "smacv2",
    "smax": "jaxmarl",
    "vmas": "vmas",
}
_SMACV2 = (
    "pip install git+https://github.com/oxwhirl/smacv2.git, and the game StarCraft II with the "
    "SMAC maps, in the folder that SC2PATH names: docs/smacv2.md"
)


def is_installed(family: str) -> bool:
    """Whether the dependency of a family of environments is installed; true if it has none."""
    return family not in MODULES or find_spec(MODULES[family]) is not None


def require(family: str) -> None:
    """Raise an ImportError with the install command if a family's dependency is missing."""
    if not is_installed(family):
        extra = f'pip install "torchrl_agentmixer[{family}]"'
        command = _SMACV2 if family == "smacv2" else extra
        raise ImportError(f"{family} environments need {MODULES[family]}: {command}")


def load(name: str) -> Any:
    """Import a class of this package that needs an optional dependency."""
    if name in _IMPORT_NEEDS:
        require(_IMPORT_NEEDS[name])
    return getattr(import_module(f"torchrl_agentmixer.envs.{CLASSES[name]}"), name)
