"""Methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from torchrl.envs import EnvBase

from torchrl_agentmixer._choices import unknown_name
from torchrl_agentmixer.algorithms.agent_mixer import AgentMixer, AgentMixerConfig
from torchrl_agentmixer.algorithms.ail import AIL, AILConfig
from torchrl_agentmixer.algorithms.armappo import ARMAPPO
from torchrl_agentmixer.algorithms.happo import HAPPO, HAPPOConfig
from torchrl_agentmixer.algorithms.mappo import IPPO, MAPPO
from torchrl_agentmixer.algorithms.mat import MAT, MATConfig, MATDec, MATDecConfig
from torchrl_agentmixer.algorithms.maven import MAVEN, MAVENConfig
from torchrl_agentmixer.algorithms.ppo import PPOAlgorithm, PPOConfig
from torchrl_agentmixer.algorithms.sac import AgentMixerSAC, AgentMixerSACConfig

Method = PPOAlgorithm | MAVEN | AgentMixerSAC
_Config = PPOConfig | MAVENConfig | AgentMixerSACConfig

_ALGORITHMS: dict[str, tuple[type[Method], type[_Config]]] = {
    "agent_mixer": (AgentMixer, AgentMixerConfig),
    "agent_mixer_sac": (AgentMixerSAC, AgentMixerSACConfig),
    "ail": (AIL, AILConfig),
    "armappo": (ARMAPPO, PPOConfig),
    "happo": (HAPPO, HAPPOConfig),
    "ippo": (IPPO, PPOConfig),
    "mappo": (MAPPO, PPOConfig),
    "mat": (MAT, MATConfig),
    "mat_dec": (MATDec, MATDecConfig),
    "maven": (MAVEN, MAVENConfig),
}


def available_algorithms() -> list[str]:
    """Names that :func:`make_algorithm` knows.

    Examples:
        >>> available_algorithms()[:5]
        ['agent_mixer', 'agent_mixer_sac', 'ail', 'armappo', 'happo']
    """
    return sorted(_ALGORITHMS)


def decentralized_execution(name: str) -> bool | None:
    """Whether a method's agents execute on their own observations alone; None if it is unknown.

    Examples:
        >>> decentralized_execution("mappo"), decentralized_execution("mat")
        (True, False)
    """
    return _ALGORITHMS[name][0].decentralized_execution if name in _ALGORITHMS else None


def default_options(name: str) -> dict[str, Any]:
    """A method's hyperparameters as they are when nothing is said; none of an unknown method.

    Examples:
        >>> default_options("mappo")["gamma"]
        0.99
    """
    return asdict(_ALGORITHMS[name][1]()) if name in _ALGORITHMS else {}


def make_algorithm(
    name: str, env: EnvBase, total_frames: int, config: Mapping[str, Any] | None = None
) -> Method:
    """Build a method for an environment.

    Args:
        name (str): one of :func:`available_algorithms`.
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (mapping, optional): hyperparameters, by the names of the method's config.

    Raises:
        ValueError: for an unknown method or hyperparameter; the message names the nearest one.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=4)
        >>> type(make_algorithm("mappo", env, 1000, {"lr": 1e-3})).__name__
        'MAPPO'
    """
    if name not in _ALGORITHMS:
        raise ValueError(unknown_name("algorithm", name, _ALGORITHMS))
    cls, config_cls = _ALGORITHMS[name]
    known = [field.name for field in fields(config_cls)]
    for key in config or {}:
        if key not in known:
            raise ValueError(unknown_name(f"hyperparameter of {name}", key, known))
    return cls(env, total_frames, config_cls(**(config or {})))  # type: ignore[call-arg, arg-type]
