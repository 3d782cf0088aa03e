"""Environments by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_agentmixer._choices import unknown_name
from torchrl_agentmixer.envs.bridge_crossing import BridgeCrossingEnv
from torchrl_agentmixer.envs.mamujoco_observations import TASKS
from torchrl_agentmixer.envs.matrix_games import MatrixGameEnv, climbing, penalty, stag_hunt
from torchrl_agentmixer.envs.optional import require_vmas
from torchrl_agentmixer.envs.predator_prey_grid import PredatorPreyGridEnv
from torchrl_agentmixer.envs.recall import RecallEnv
from torchrl_agentmixer.envs.smax_races import RACES, SCENARIOS

Builder = Callable[..., EnvBase]
Device = torch.device | str | None

# What every builder takes.
_COMMON = ("self", "num_envs", "device", "seed")
# Module that the names of a family need.
_NEEDS = {
    "mamujoco": "gymnasium_robotics",
    "smacv2": "smacv2",
    "smax": "jaxmarl",
    "vmas": "vmas",
}


def _climbing(num_envs: int, device: Device, seed: int | None) -> EnvBase:
    return MatrixGameEnv(climbing(), num_envs=num_envs, device=device, seed=seed)


def _penalty(num_envs: int, device: Device, seed: int | None, k: float = -25.0) -> EnvBase:
    return MatrixGameEnv(penalty(k), num_envs=num_envs, device=device, seed=seed)


def _stag_hunt(num_envs: int, device: Device, seed: int | None, n_agents: int = 4) -> EnvBase:
    return MatrixGameEnv(stag_hunt(n_agents), num_envs=num_envs, device=device, seed=seed)


def _mamujoco(task: str, **kwargs: Any) -> EnvBase:
    from torchrl_agentmixer.envs.mamujoco import MaMujocoEnv

    builder = partial(MaMujocoEnv.__init__, None, task)  # type: ignore[arg-type]
    _check_options(f"mamujoco/{task}", builder, kwargs)  # type: ignore[arg-type]
    return MaMujocoEnv(task, **kwargs)


def _smacv2(race: str, **kwargs: Any) -> EnvBase:
    from torchrl_agentmixer.envs.smacv2 import SMACv2TeamEnv

    return SMACv2TeamEnv(race, **kwargs)


def _smax(scenario: str, **kwargs: Any) -> EnvBase:
    from torchrl_agentmixer.envs.smax import SmaxEnv

    return SmaxEnv(scenario, **kwargs)


def _vmas_predator_prey(**kwargs: Any) -> EnvBase:
    require_vmas()
    from torchrl_agentmixer.envs.predator_prey import make_predator_prey

    _check_options("vmas/predator_prey", make_predator_prey, kwargs)
    return make_predator_prey(**kwargs)


def _vmas_scenario(name: str, **kwargs: Any) -> EnvBase:
    from torchrl_agentmixer.envs.vmas import VmasTeamEnv

    with warnings.catch_warnings():
        # VMAS warns of options that a scenario does not know; a typo should stop.
        warnings.filterwarnings("error", message="Scenario kwargs", category=UserWarning)
        try:
            return VmasTeamEnv(name.removeprefix("vmas/"), **kwargs)
        except UserWarning as warning:
            raise ValueError(f"unknown option of {name}: {warning}") from None


_BUILDERS: dict[str, Builder] = {
    "grid/bridge_crossing": BridgeCrossingEnv,
    "grid/predator_prey": PredatorPreyGridEnv,
    **{f"mamujoco/{task}": partial(_mamujoco, task) for task in TASKS},
    "matrix/climbing": _climbing,
    "matrix/penalty": _penalty,
    "matrix/stag_hunt": _stag_hunt,
    **{
        f"smacv2/{race}_{units}_vs_{units}": partial(_smacv2, race, n_units=units)
        for race in RACES
        for units in (5, 10)
    },
    **{
        f"smax/{scenario}": partial(_smax, scenario)
        for scenario in (*SCENARIOS, *(f"{race}_{n}_vs_{n}" for race in RACES for n in (5, 10)))
    },
    "memory/recall": RecallEnv,
    "vmas/predator_prey": _vmas_predator_prey,
}


def register_env(name: str, builder: Builder) -> None:
    """Make ``builder(num_envs=..., device=..., seed=..., **kwargs)`` known under a name.

    Args:
        name (str): new; existing names are kept.
        builder (callable): returns a batched multi-agent environment.

    Raises:
        ValueError: if the name is taken.

    Examples:
        >>> import torch
        >>> register_env("matrix/diagonal", lambda **kw: MatrixGameEnv(torch.eye(2), **kw))
        >>> make_env("matrix/diagonal", num_envs=3).batch_size
        torch.Size([3])
    """
    if name in _BUILDERS:
        raise ValueError(f"environment {name!r} exists already: expected a new name.")
    _BUILDERS[name] = builder


def available_envs() -> list[str]:
    """Names that :func:`make_env` can build; those that need an extra only where it is installed.

    Examples:
        >>> "grid/predator_prey" in available_envs()
        True
    """
    installed = {family for family, module in _NEEDS.items() if find_spec(module) is not None}
    names = {name for name in _BUILDERS if name.partition("/")[0] not in {*_NEEDS} - installed}
    if "vmas" in installed:
        from torchrl.envs import VmasEnv

        names |= {f"vmas/{scenario}" for scenario in VmasEnv.available_envs}
    return sorted(names)


def make_env(
    name: str,
    *,
    num_envs: int = 1,
    device: Device = None,
    seed: int | None = None,
    **kwargs: Any,
) -> EnvBase:
    """Build a batch of environments.

    Args:
        name (str): one of :func:`available_envs`.

    Keyword Args:
        num_envs (int): environments in the batch.
        device (optional): where they live.
        seed (int, optional): of the environments' random numbers.
        **kwargs: options of this environment.

    Raises:
        ValueError: for an unknown name or option; the message names the nearest one.
        ImportError: for a missing extra, with the command that installs it.

    Examples:
        >>> make_env("grid/predator_prey", num_envs=8, penalty=-1.0).batch_size
        torch.Size([8])
    """
    options = {"num_envs": num_envs, "device": device, "seed": seed, **kwargs}
    if name in _BUILDERS:
        _check_options(name, _BUILDERS[name], kwargs)
        return _BUILDERS[name](**options)
    if name.startswith("vmas/"):
        require_vmas()
        if name in available_envs():
            return _vmas_scenario(name, **options)
    raise ValueError(unknown_name("environment", name, available_envs()))


def _check_options(name: str, builder: Builder, kwargs: dict[str, Any]) -> None:
    # Of a class, its own `__init__`: the metaclass of TorchRL's environments takes anything.
    call = builder.__init__ if isinstance(builder, type) else builder  # type: ignore[misc]
    parameters = inspect.signature(call).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return  # the builder decides
    options = [option for option in parameters if option not in _COMMON]
    for key in kwargs:
        if key not in options and key not in _COMMON:
            raise ValueError(unknown_name(f"option of {name}", key, options))
