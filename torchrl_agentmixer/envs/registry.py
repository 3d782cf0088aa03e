"""Environments by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_agentmixer._choices import check_known, unknown_name
from torchrl_agentmixer.envs.bridge_crossing import BridgeCrossingEnv
from torchrl_agentmixer.envs.combined_actions import combine_actions
from torchrl_agentmixer.envs.continuous_games import (
    ContinuousGameEnv,
    SmoothMatrixGame,
    two_quadratics,
)
from torchrl_agentmixer.envs.mamujoco_tasks import TASKS, is_task
from torchrl_agentmixer.envs.matrix_games import (
    MatrixGameEnv,
    climbing,
    climbing_spread,
    penalty,
    stag_hunt,
)
from torchrl_agentmixer.envs.optional import is_installed, load, require
from torchrl_agentmixer.envs.predator_prey_grid import PredatorPreyGridEnv
from torchrl_agentmixer.envs.recall import RecallEnv
from torchrl_agentmixer.envs.scenarios import RACE_SCENARIOS, SMAX_SCENARIOS, race_of

Builder = Callable[..., EnvBase]
Device = torch.device | str | None

# Arguments of every builder.
_COMMON = ("self", "num_envs", "device", "seed")


def _climbing(
    num_envs: int, device: Device, seed: int | None, stochastic: str | None = None
) -> EnvBase:
    spread = 0.0 if stochastic is None else climbing_spread(stochastic)
    return MatrixGameEnv(climbing(), spread=spread, num_envs=num_envs, device=device, seed=seed)


def _penalty(
    num_envs: int, device: Device, seed: int | None, k: float = -25.0, spread: float = 0.0
) -> EnvBase:
    return MatrixGameEnv(penalty(k), spread=spread, num_envs=num_envs, device=device, seed=seed)


def _stag_hunt(num_envs: int, device: Device, seed: int | None, n_agents: int = 4) -> EnvBase:
    return MatrixGameEnv(stag_hunt(n_agents), num_envs=num_envs, device=device, seed=seed)


def _two_quadratics(
    num_envs: int, device: Device, seed: int | None, n_agents: int = 2, action_dim: int = 1
) -> EnvBase:
    options: dict[str, Any] = {"num_envs": num_envs, "device": device, "seed": seed}
    return ContinuousGameEnv(two_quadratics, n_agents=n_agents, action_dim=action_dim, **options)


def _smooth_penalty(num_envs: int, device: Device, seed: int | None, k: float = -25.0) -> EnvBase:
    game = SmoothMatrixGame(penalty(k))
    return ContinuousGameEnv(game, num_envs=num_envs, device=device, seed=seed)


def _smooth_stag_hunt(
    num_envs: int, device: Device, seed: int | None, n_agents: int = 4
) -> EnvBase:
    game = SmoothMatrixGame(stag_hunt(n_agents))
    return ContinuousGameEnv(game, n_agents=n_agents, num_envs=num_envs, device=device, seed=seed)


def _mamujoco(task: str, **kwargs: Any) -> EnvBase:
    cls = load("MaMujocoEnv")
    _check_options(f"mamujoco/{task}", partial(cls.__init__, None, task), kwargs)
    return cls(task, **kwargs)


def _smacv2(scenario: str, **kwargs: Any) -> EnvBase:
    race, n_units, _ = race_of(scenario)  # type: ignore[misc]
    return load("SMACv2TeamEnv")(race, **{"n_units": n_units, **kwargs})


def _smax(scenario: str, **kwargs: Any) -> EnvBase:
    return load("SmaxEnv")(scenario, **kwargs)


def _vmas_predator_prey(**kwargs: Any) -> EnvBase:
    return load("VmasTeamEnv")(load("PredatorPreyScenario")(), **kwargs)


def _vmas_scenario(name: str, **kwargs: Any) -> EnvBase:
    with warnings.catch_warnings():
        # VMAS warns about options that a scenario does not know; here they are errors.
        warnings.filterwarnings("error", message="Scenario kwargs", category=UserWarning)
        try:
            return combine_actions(load("VmasTeamEnv")(name.removeprefix("vmas/"), **kwargs))
        except UserWarning as warning:
            raise ValueError(f"unknown option of {name}: {warning}") from None


_BUILDERS: dict[str, Builder] = {
    "continuous/penalty": _smooth_penalty,
    "continuous/stag_hunt": _smooth_stag_hunt,
    "continuous/two_quadratics": _two_quadratics,
    "grid/bridge_crossing": BridgeCrossingEnv,
    "grid/predator_prey": PredatorPreyGridEnv,
    **{f"mamujoco/{task}": partial(_mamujoco, task) for task in TASKS},
    "matrix/climbing": _climbing,
    "matrix/penalty": _penalty,
    "matrix/stag_hunt": _stag_hunt,
    **{f"smacv2/{name}": partial(_smacv2, name) for name in RACE_SCENARIOS},
    **{f"smax/{name}": partial(_smax, name) for name in (*SMAX_SCENARIOS, *RACE_SCENARIOS)},
    "memory/recall": RecallEnv,
    "vmas/predator_prey": _vmas_predator_prey,
}


def register_env(name: str, builder: Builder) -> None:
    """Add an environment to the registry.

    Args:
        name (str): a new name.
        builder (callable): called as ``builder(num_envs=..., device=..., seed=..., **kwargs)``;
            returns a batched multi-agent environment.

    Raises:
        ValueError: if the name exists already.

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
    """Names of the environments whose dependencies are installed.

    Examples:
        >>> "grid/predator_prey" in available_envs()
        True
    """
    names = {name for name in _BUILDERS if is_installed(name.partition("/")[0])}
    if is_installed("pettingzoo"):
        from torchrl_agentmixer.envs.petting_zoo import petting_zoo_tasks

        names |= {f"pettingzoo/{task}" for task in petting_zoo_tasks()}
    if is_installed("vmas"):
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
        device (optional): device of the environments.
        seed (int, optional): seed of the environments' random numbers.
        **kwargs: options of this environment.

    Raises:
        ValueError: for an unknown name or option; the message names the nearest match.
        ImportError: for a missing dependency, with the install command.

    Examples:
        >>> make_env("grid/predator_prey", num_envs=8, penalty=-1.0).batch_size
        torch.Size([8])
    """
    options = {"num_envs": num_envs, "device": device, "seed": seed, **kwargs}
    if name in _BUILDERS:
        _check_options(name, _BUILDERS[name], kwargs)
        return _BUILDERS[name](**options)
    family, _, task = name.partition("/")
    if family == "mamujoco" and is_task(task):  # a many-segment robot of another size
        return _mamujoco(task, **options)
    if name.startswith("pettingzoo/"):
        require("pettingzoo")
        if name in available_envs():
            from torchrl_agentmixer.envs.petting_zoo import petting_zoo_env

            return petting_zoo_env(name.removeprefix("pettingzoo/"), **options)
    if name.startswith("vmas/"):
        require("vmas")
        if name in available_envs():
            return _vmas_scenario(name, **options)
    raise ValueError(unknown_name("environment", name, available_envs()))


def _check_options(name: str, builder: Builder, kwargs: dict[str, Any]) -> None:
    # The `__init__` of a class: the metaclass of TorchRL's environments accepts any argument.
    call = builder.__init__ if isinstance(builder, type) else builder  # type: ignore[misc]
    parameters = inspect.signature(call).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return  # the builder checks its options
    options = [option for option in parameters if option not in _COMMON]
    check_known(f"option of {name}", [key for key in kwargs if key not in _COMMON], options)
