"""Groups of agents: sizes and action spaces, read from an environment's specs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict.utils import NestedKey
from torchrl.data import Bounded, Categorical, Composite, OneHot, TensorSpec
from torchrl.envs import EnvBase

from torchrl_agentmixer._choices import check_at_least


@dataclass(frozen=True)
class AgentGroup:
    """Sizes and action space of one group of agents.

    Args:
        name: the group's key in the tensordict, usually ``"agents"``.
        n_agents: number of agents.
        observation_dim: entries of one agent's observation.
        action_dim: action dimensions (continuous) or number of actions (discrete).
        discrete: whether actions are categorical.
        masked: whether the environment writes ``(name, "action_mask")``.
        low: lower bounds of continuous actions, ``[n_agents, action_dim]``; ``None`` if unbounded.
        high: upper bounds, of the same shape.

    Raises:
        ValueError: if a size is less than 1.

    Examples:
        >>> group = AgentGroup("agents", n_agents=3, observation_dim=8, action_dim=5, discrete=True)
        >>> group.key("action")
        ('agents', 'action')
    """

    name: str
    n_agents: int
    observation_dim: int
    action_dim: int
    discrete: bool
    masked: bool = False
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None

    def __post_init__(self) -> None:
        check_at_least(
            f"AgentGroup {self.name!r}",
            1,
            n_agents=self.n_agents,
            observation_dim=self.observation_dim,
            action_dim=self.action_dim,
        )

    def key(self, leaf: str) -> NestedKey:
        """Nested key of an entry of the group."""
        return (self.name, leaf)

    @property
    def param_names(self) -> tuple[str, ...]:
        """Names of the parameters of the individual policies."""
        return ("logits",) if self.discrete else ("loc", "scale")

    @property
    def param_keys(self) -> list[NestedKey]:
        """Keys of the individual policies' parameters."""
        return [self.key(name) for name in self.param_names]

    @property
    def params_dim(self) -> int:
        """Number of parameters of one individual policy's distribution."""
        return self.action_dim if self.discrete else 2 * self.action_dim


def agent_groups(env: EnvBase) -> list[AgentGroup]:
    """Groups of a TorchRL multi-agent environment, from its specs.

    Args:
        env (EnvBase): an environment with ``group_map`` and ``(group, "observation")`` and
            ``(group, "action")`` specs.

    Raises:
        ValueError: for an environment without groups, or an action space that is neither
            categorical nor continuous.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> (group,) = agent_groups(make_env("matrix/climbing", num_envs=4))
        >>> group.n_agents, group.action_dim, group.discrete
        (2, 3, True)
    """
    group_map = getattr(env, "group_map", None)
    if not group_map:
        raise ValueError(
            f"{type(env).__name__} has no `group_map`: expected a TorchRL multi-agent environment "
            "with at least one group of agents, such as VmasEnv or PettingZooEnv."
        )
    return [_group(env, name) for name in group_map]


def state_dim(env: EnvBase, state_key: NestedKey = "state") -> int:
    """Number of entries of the environment's state.

    Raises:
        KeyError: if the environment does not write ``state_key``.
    """
    return _spec(env.observation_spec_unbatched, state_key, env).shape[-1]


def _group(env: EnvBase, name: str) -> AgentGroup:
    observations = env.observation_spec_unbatched
    observation = _spec(observations, (name, "observation"), env)
    action = _spec(env.full_action_spec_unbatched, (name, "action"), env)
    masked = (name, "action_mask") in observations.keys(True, True)
    n_agents, observation_dim = observation.shape[-2:]
    common = {"name": name, "n_agents": n_agents, "observation_dim": observation_dim}
    if isinstance(action, OneHot):
        raise ValueError(
            f"group {name!r}: expected categorical actions, got one-hot actions; build the "
            "environment with `categorical_actions=True`."
        )
    if isinstance(action, Categorical):
        return AgentGroup(**common, action_dim=action.space.n, discrete=True, masked=masked)
    if action.dtype.is_floating_point:
        bounded = isinstance(action, Bounded)
        return AgentGroup(
            **common,
            action_dim=action.shape[-1],
            discrete=False,
            low=action.space.low if bounded else None,
            high=action.space.high if bounded else None,
        )
    raise ValueError(
        f"group {name!r}: expected categorical or continuous actions, got {type(action).__name__} "
        f"of dtype {action.dtype}."
    )


def _spec(specs: Composite, key: NestedKey, env: EnvBase) -> TensorSpec:
    available = list(specs.keys(True, True))
    if key not in available:
        raise KeyError(
            f"{type(env).__name__} has no entry {key!r}: expected it among {available}. "
            "Add it with a transform, or pass another key."
        )
    return specs[key]
