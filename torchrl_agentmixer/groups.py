"""Groups of agents: sizes and action spaces, read from an environment's specs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict.utils import NestedKey
from torchrl.data import (
    Bounded,
    Categorical,
    OneHot,
    Stacked,
    TensorSpec,
    Unbounded,
)
from torchrl.envs import EnvBase

from torchrl_agentmixer._choices import check_at_least

_TEAM_ENV = "torchrl_agentmixer.envs.team_env(env)"
_ONE_GROUP = (
    "Build the environment with one group per agent: a `group_map` such as "
    "`MarlGroupMapType.ONE_GROUP_PER_AGENT`."
)
_ONE_CHOICE = (
    "Several discrete actions per agent are not supported: build the environment with one "
    "categorical action, whose values are the combinations."
)


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

    Every group has ``(group, "observation")`` ``[*B, n_agents, o]``, float32, and
    ``(group, "action")``, categorical ``[*B, n_agents]`` or continuous ``[*B, n_agents, A]``.
    :func:`~torchrl_agentmixer.envs.team_env` gives most environments this layout.

    Args:
        env (EnvBase): an environment, also a batch of workers (``SerialEnv``, ``ParallelEnv``).

    Raises:
        KeyError: for a missing observation.
        ValueError: for an environment without groups, and for actions or observations of another
            kind, shape or dtype; the message says what to do.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> (group,) = agent_groups(make_env("matrix/climbing", num_envs=4))
        >>> group.n_agents, group.action_dim, group.discrete
        (2, 3, True)
    """
    return [_group(env, name) for name in group_names(env)]


def group_names(env: EnvBase) -> list[str]:
    """Names of the groups of agents: those that act.

    Raises:
        ValueError: if an action has another key than ``(group, "action")``.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> group_names(make_env("matrix/climbing"))
        ['agents']
    """
    # Not from `group_map`, which batches of workers answer once per worker.
    keys = list(env.full_action_spec_unbatched.keys(True, True))
    for key in keys:
        if not (isinstance(key, tuple) and key[1:] == ("action",)):
            raise ValueError(
                f"{type(env).__name__}: expected actions under (group, 'action'), got the key "
                f"{key!r}: expected a TorchRL multi-agent environment, such as VmasEnv or "
                "PettingZooWrapper, with one action per agent."
            )
    return [key[0] for key in keys]


def state_dim(env: EnvBase, state_key: NestedKey = "state") -> int:
    """Number of entries of the environment's state.

    Raises:
        KeyError: if the environment does not write ``state_key``.
        ValueError: for a state of another shape than ``[*B, s]``, or not float32.
    """
    advice = f"`{_TEAM_ENV}` writes a state of all observations; or pass another `state_key`."
    state = _spec(env, state_key, advice)
    _check_vector(state_key, state, 1, "[*B, s]")
    return state.shape[-1]


def check_team(env: EnvBase) -> None:
    """Check that an environment has a team reward and done flags at the root, ``[*B, 1]``.

    Raises:
        ValueError: otherwise; the message says what to do.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> check_team(make_env("matrix/climbing"))
    """
    for name, spec in (("reward", env.full_reward_spec_unbatched), ("done", env.full_done_spec)):
        keys = list(spec.keys(True, True))
        nested = [key for key in keys if isinstance(key, tuple)]
        if name not in keys or (name == "done" and nested):
            raise ValueError(
                f"{type(env).__name__}: expected {name!r} of the whole team at the root only, got "
                f"the keys {keys}: use `{_TEAM_ENV}`."
            )


def _group(env: EnvBase, name: str) -> AgentGroup:
    action_key, key = (name, "action"), (name, "observation")
    action = env.full_action_spec_unbatched[action_key]
    n_agents, discrete = _check_action(action_key, action), type(action) is Categorical
    advice = "Name another or a nested entry by `team_env(env, observation_key=...)`."
    observation = _spec(env, key, advice)
    _check_vector(key, observation, 2, "[*B, n_agents, o]")
    if observation.shape[0] != n_agents:
        raise ValueError(
            f"{key!r}: expected observations of {n_agents} agents, as there are actions, got "
            f"{_shape(observation)}."
        )
    bounded = isinstance(action, Bounded)
    return AgentGroup(
        name=name,
        n_agents=n_agents,
        observation_dim=observation.shape[1],
        action_dim=action.space.n if discrete else action.shape[1],
        discrete=discrete,
        masked=(name, "action_mask") in env.observation_spec_unbatched.keys(True, True),
        low=action.space.low if bounded else None,
        high=action.space.high if bounded else None,
    )


def _check_action(key: NestedKey, action: TensorSpec) -> int:
    """Check the actions of a group, given without batch size; return the number of agents."""
    got = f"got {type(action).__name__} {_shape(action)} of dtype {action.dtype}"
    if isinstance(action, Stacked):
        raise ValueError(
            f"{key!r}: expected the same actions for all agents of a group, {got}. {_ONE_GROUP} "
            "Or give all agents the largest number of actions, and write an action mask."
        )
    if isinstance(action, OneHot):
        raise ValueError(
            f"{key!r}: expected categorical actions, {got}: build the environment with "
            "`categorical_actions=True`."
        )
    discrete = type(action) is Categorical
    continuous = isinstance(action, Bounded | Unbounded) and action.dtype.is_floating_point
    if not (discrete or continuous):
        raise ValueError(
            f"{key!r}: expected one categorical action per agent (`Categorical`) or continuous "
            f"actions (`Bounded`, `Unbounded`), {got}. {_ONE_CHOICE}"
        )
    if len(action.shape) != (1 if discrete else 2):
        expected = "[*B, n_agents]" if discrete else "[*B, n_agents, A]"
        raise ValueError(f"{key!r}: expected {expected}, {got}. {_ONE_CHOICE if discrete else ''}")
    return action.shape[0]


def _check_vector(key: NestedKey, spec: TensorSpec, ndim: int, expected: str) -> None:
    """Check that an entry, given without batch size, has ``ndim`` dimensions and is float32."""
    if isinstance(spec, Stacked):
        raise ValueError(
            f"{key!r}: expected {expected}, got observations of different sizes. {_ONE_GROUP}"
        )
    if len(spec.shape) != ndim:
        raise ValueError(
            f"{key!r}: expected {expected}, got {_shape(spec)}. Encode images; TorchRL's "
            "`FlattenObservation`, before `team_env`, makes a vector of other arrays."
        )
    if spec.dtype != torch.float32:
        raise ValueError(
            f"{key!r}: expected float32, got {spec.dtype}: use `{_TEAM_ENV}`, or TorchRL's "
            "`DoubleToFloat` or `DTypeCastTransform`."
        )


def _shape(spec: TensorSpec) -> str:
    return f"[{', '.join(['*B', *map(str, spec.shape)])}]"


def _spec(env: EnvBase, key: NestedKey, advice: str) -> TensorSpec:
    specs = env.observation_spec_unbatched
    available = list(specs.keys(True, True))
    if key not in available:
        raise KeyError(
            f"{type(env).__name__} has no entry {key!r}: expected it among {available}. {advice}"
        )
    return specs[key]
