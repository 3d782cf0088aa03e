"""Parallel PettingZoo tasks by name, as batches of teams."""

from __future__ import annotations

import inspect
import os
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import gymnasium
import torch
from pettingzoo import ParallelEnv
from torchrl.envs import (
    EnvBase,
    FlattenObservation,
    PettingZooWrapper,
    SerialEnv,
    ToTensorImage,
    TransformedEnv,
)

from torchrl_agentmixer._choices import check_at_least, check_known, unknown_name
from torchrl_agentmixer.envs.adapters import team_env
from torchrl_agentmixer.envs.team_reward import TeamReward
from torchrl_agentmixer.groups import RESERVED

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # else pygame prints a greeting

# Packages of parallel tasks; MPE has one of its own since PettingZoo 1.25.
_PACKAGES = ("mpe2", "pettingzoo.butterfly", "pettingzoo.sisl")


def petting_zoo_tasks() -> dict[str, str]:
    """Modules of PettingZoo's parallel tasks by name, such as ``simple_spread_v3``."""
    tasks = {}
    for package in _PACKAGES:
        if find_spec(package.partition(".")[0]) is None:
            continue
        for module in pkgutil.iter_modules(import_module(package).__path__):
            name, _, version = module.name.rpartition("_v")
            if name and version.isdigit():
                tasks[module.name] = f"{package}.{module.name}"
    return tasks


def petting_zoo_env(
    task: str,
    *,
    num_envs: int,
    device: torch.device | str | None = None,
    seed: int | None = None,
    reward: TeamReward | None = None,
    **kwargs: Any,
) -> EnvBase:
    """Build a batch of one of PettingZoo's parallel tasks, by :func:`team_env`.

    The environments are stepped one after another. Agents that leave are masked, and an episode
    ends when all have left. The state is the task's ``state()``, where it is one vector. Images
    have their channels first, and matrices are vectors.

    Args:
        task (str): such as ``"simple_spread_v3"``.

    Keyword Args:
        num_envs (int): environments in the batch.
        device (optional): device of the tensordicts.
        seed (int, optional): seed of the environments' random numbers.
        reward ("sum", "mean" or callable, optional): as in :func:`team_env`.
        **kwargs: options of the task, such as ``max_cycles``.

    Raises:
        ImportError: if the task needs a package that is not installed.
        ValueError: for an unknown task or option, and as :func:`team_env`.
    """
    check_at_least(f"pettingzoo/{task}", 1, num_envs=num_envs)
    tasks = petting_zoo_tasks()
    if task not in tasks:
        raise ValueError(unknown_name("PettingZoo task", task, tasks))
    build = partial(_wrapped, _parallel_env(task, tasks[task], kwargs))
    env = team_env(SerialEnv(num_envs, build, device=torch.device(device or "cpu")), reward=reward)
    env.set_seed(seed if seed is not None else int(torch.randint(2**31, ())))
    return env


def _parallel_env(task: str, module: str, kwargs: Mapping[str, Any]) -> Callable[[], ParallelEnv]:
    function = import_module(module).parallel_env
    source = import_module(f"{module.rpartition('_v')[0]}.{task.rpartition('_v')[0]}")
    known = inspect.signature(source.raw_env.__init__).parameters
    check_known(f"option of pettingzoo/{task}", kwargs, [key for key in known if key != "self"])
    return partial(function, **kwargs)


def _wrapped(build: Callable[[], ParallelEnv]) -> EnvBase:
    env = build()
    space = getattr(env, "state_space", None)
    has_state = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1
    options = {"return_state": has_state, "use_mask": True, "done_on_any": False}
    with warnings.catch_warnings():
        # It warns of every version of PettingZoo after 1.24.3; tests here use the present one.
        warnings.filterwarnings("ignore", "PettingZoo in TorchRL is tested", UserWarning)
        wrapped = PettingZooWrapper(env, **options)
        if RESERVED & wrapped.group_map.keys():
            names = {name: f"{name}s" if name in RESERVED else name for name in wrapped.group_map}
            group_map = {names[name]: agents for name, agents in wrapped.group_map.items()}
            wrapped = PettingZooWrapper(env, group_map=group_map, **options)
    return _arrays_as_read(wrapped)


def _arrays_as_read(env: EnvBase) -> EnvBase:
    """Images ``[n_agents, H, W, C]`` with channels first, and matrices as vectors."""
    specs = env.observation_spec_unbatched
    keys = [(name, "observation") for name in env.group_map]
    images = [key for key in keys if len(specs[key].shape) == 4]
    matrices = [key for key in keys if len(specs[key].shape) == 3]
    if images:
        env = TransformedEnv(env, ToTensorImage(in_keys=images), auto_unwrap=False)
    if matrices:
        flat = FlattenObservation(-2, -1, in_keys=matrices)
        env = TransformedEnv(env, flat, auto_unwrap=False)
    return env
