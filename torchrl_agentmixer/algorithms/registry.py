"""Registry of algorithms by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from torchrl.envs import EnvBase

from torchrl_agentmixer._choices import check_known
from torchrl_agentmixer.algorithms.agent_mixer import (
    AgentMixer,
    AgentMixerConfig,
    ContinuousAgentMixer,
    ContinuousAgentMixerConfig,
)
from torchrl_agentmixer.algorithms.ail import AIL, AILConfig
from torchrl_agentmixer.algorithms.armappo import ARMAPPO
from torchrl_agentmixer.algorithms.base import Algorithm
from torchrl_agentmixer.algorithms.happo import HAPPO, HAPPOConfig
from torchrl_agentmixer.algorithms.hasac import HASAC, HASACConfig
from torchrl_agentmixer.algorithms.magpo import MAGPO, MAGPOConfig
from torchrl_agentmixer.algorithms.mappo import IPPO, MAPPO
from torchrl_agentmixer.algorithms.masac import MASAC
from torchrl_agentmixer.algorithms.mat import MAT, MATConfig, MATDec, MATDecConfig
from torchrl_agentmixer.algorithms.maven import MAVEN, MAVENConfig
from torchrl_agentmixer.algorithms.ppo_config import PPOConfig
from torchrl_agentmixer.algorithms.sac import AgentMixerSAC, AgentMixerSACConfig
from torchrl_agentmixer.algorithms.sac_base import SACConfig

_ALGORITHMS: dict[str, tuple[type[Algorithm], type]] = {
    "agent_mixer": (AgentMixer, AgentMixerConfig),
    "agent_mixer_continuous": (ContinuousAgentMixer, ContinuousAgentMixerConfig),
    "agent_mixer_sac": (AgentMixerSAC, AgentMixerSACConfig),
    "ail": (AIL, AILConfig),
    "armappo": (ARMAPPO, PPOConfig),
    "happo": (HAPPO, HAPPOConfig),
    "hasac": (HASAC, HASACConfig),
    "ippo": (IPPO, PPOConfig),
    "magpo": (MAGPO, MAGPOConfig),
    "mappo": (MAPPO, PPOConfig),
    "masac": (MASAC, SACConfig),
    "mat": (MAT, MATConfig),
    "mat_dec": (MATDec, MATDecConfig),
    "maven": (MAVEN, MAVENConfig),
}


def register_algorithm(name: str, cls: type[Algorithm], config_cls: type) -> None:
    """Register an algorithm under a name.

    Args:
        name (str): a new name.
        cls (type): a subclass of :class:`Algorithm`, built as ``cls(env, total_frames, config)``.
        config_cls (type): the dataclass of its hyperparameters, with their defaults.

    Raises:
        ValueError: if the name is taken.

    Examples:
        >>> class MyMAPPO(MAPPO):
        ...     value_per_agent = False
        >>> register_algorithm("my_mappo", MyMAPPO, PPOConfig)
        >>> "my_mappo" in available_algorithms()
        True
        >>> del _ALGORITHMS["my_mappo"]
    """
    if name in _ALGORITHMS:
        raise ValueError(f"algorithm {name!r} exists already: expected a new name.")
    _ALGORITHMS[name] = (cls, config_cls)


def available_algorithms(env: EnvBase | None = None) -> list[str]:
    """Names of all algorithms, or of those that support an environment.

    Args:
        env (EnvBase, optional): an environment with groups of agents.

    Examples:
        >>> available_algorithms()[:4]
        ['agent_mixer', 'agent_mixer_continuous', 'agent_mixer_sac', 'ail']
        >>> from torchrl_agentmixer.envs import make_env
        >>> "agent_mixer_sac" in available_algorithms(make_env("matrix/climbing"))
        False
    """
    return sorted(n for n in _ALGORITHMS if env is None or _ALGORITHMS[n][0].supports(env))


def algorithm_class(name: str) -> type[Algorithm]:
    """The class of an algorithm.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest one.

    Examples:
        >>> algorithm_class("mat").decentralized_execution
        False
    """
    return _entry(name)[0]


def default_options(name: str) -> dict[str, Any]:
    """Default hyperparameters of an algorithm, as JSON represents them.

    Examples:
        >>> default_options("mappo")["actor_hidden"]
        [64]
    """
    return _plain(_entry(name)[1]())


def resolved_options(name: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Default hyperparameters of an algorithm, updated with ``config``.

    Raises:
        ValueError: for an unknown name or hyperparameter; the message suggests the nearest one.

    Examples:
        >>> resolved_options("mappo", {"lr": 1e-3})["lr"]
        0.001
    """
    return _plain(_config(name, config))


def make_algorithm(
    name: str, env: EnvBase, total_frames: int, config: Mapping[str, Any] | None = None
) -> Algorithm:
    """Build an algorithm for an environment.

    Args:
        name (str): one of :func:`available_algorithms`.
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (mapping, optional): hyperparameters: fields of the algorithm's config.

    Raises:
        ValueError: for an unknown name or hyperparameter (the message suggests the nearest one), or
            an environment that the algorithm does not support.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=4)
        >>> type(make_algorithm("mappo", env, 1000, {"lr": 1e-3})).__name__
        'MAPPO'
    """
    build: Any = _entry(name)[0]
    values = _config(name, config)
    try:
        build.supported_groups(env)
    except ValueError as error:
        others = available_algorithms(env)
        if not others:  # the environment is at fault
            raise
        raise ValueError(f"algorithm {name!r}: {error} It lists {', '.join(others)}.") from None
    return build(env, total_frames, values)


def _entry(name: str) -> tuple[type[Algorithm], type]:
    check_known("algorithm", [name], _ALGORITHMS)
    return _ALGORITHMS[name]


def _config(name: str, config: Mapping[str, Any] | None) -> Any:
    config_cls: Any = _entry(name)[1]
    known = [field.name for field in fields(config_cls)]
    check_known(f"hyperparameter of {name}", config or {}, known)
    return config_cls(**(config or {}))


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))
