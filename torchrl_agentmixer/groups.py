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
    StackedComposite,
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
_ONE_CHOICE = f"`{_TEAM_ENV}` makes one action of several discrete ones per agent."


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
        leaves: whether it writes ``(name, "mask")`` ``[*B, n_agents]``, false for agents that have
            left, beside continuous actions. (An action mask says so for discrete ones.)
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
    leaves: bool = False
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
    def mask_keys(self) -> dict[str, NestedKey]:
        """Key of what the joint distribution takes as ``mask``, if there is any."""
        given = "action_mask" if self.masked else "mask" if self.leaves else None
        return {} if given is None else {"mask": self.key(given)}

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
    return [_group(env, name, n_agents) for name, n_agents in group_sizes(env).items()]


def group_sizes(env: EnvBase) -> dict[str, int]:
    """Number of agents of each group, from the specs of its actions.

    Raises:
        ValueError: for actions of another key, kind or shape than :func:`agent_groups` supports.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> group_sizes(make_env("matrix/climbing"))
        {'agents': 2}
    """
    # Not from `group_map`, which batches of workers answer once per worker.
    specs = env.full_action_spec_unbatched
    keys = list(specs.keys(True, True))
    for key in keys:
        if not (isinstance(key, tuple) and key[1:] == ("action",)):
            raise ValueError(
                f"{type(env).__name__}: expected actions under (group, 'action'), got the key "
                f"{key!r}: expected a TorchRL multi-agent environment, such as VmasEnv or "
                "PettingZooWrapper, with one action per agent."
            )
    return {key[0]: _check_action(key, specs[key]) for key in keys}


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
    specs = {"reward": env.full_reward_spec_unbatched, "done": env.full_done_spec_unbatched}
    for name, spec in specs.items():
        keys = list(spec.keys(True, True))
        nested = any(isinstance(key, tuple) for key in keys)
        if name not in keys or (name == "done" and nested) or spec[name].shape != (1,):
            got = {key: list(spec[key].shape) for key in keys}
            raise ValueError(
                f"{type(env).__name__}: expected {name!r} [*B, 1] of the whole team at the root "
                f"only, got (without *B) {got}: use `{_TEAM_ENV}`."
            )


def check_equal_sizes(key: NestedKey, spec: TensorSpec) -> None:
    """Raise a ValueError for a stack of different specs, one per agent of a group."""
    if isinstance(spec, Stacked | StackedComposite):
        raise ValueError(
            f"{key!r}: expected entries of one size for all agents of a group, got different "
            f"ones. {_ONE_GROUP}"
        )


def _group(env: EnvBase, name: str, n_agents: int) -> AgentGroup:
    action, key = env.full_action_spec_unbatched[name, "action"], (name, "observation")
    discrete = type(action) is Categorical
    advice = "Name another or a nested entry by `team_env(env, observation_key=...)`."
    observation = _spec(env, key, advice)
    _check_vector(key, observation, 2, "[*B, n_agents, o]")
    if observation.shape[0] != n_agents:
        raise ValueError(
            f"{key!r}: expected observations of {n_agents} agents, as there are actions, got "
            f"{_shape(observation)}."
        )
    bounded, entries = isinstance(action, Bounded), env.observation_spec_unbatched.keys(True, True)
    return AgentGroup(
        name=name,
        n_agents=n_agents,
        observation_dim=observation.shape[1],
        action_dim=action.space.n if discrete else action.shape[1],
        discrete=discrete,
        masked=discrete and (name, "action_mask") in entries,
        leaves=not discrete and (name, "mask") in entries,
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
    check_equal_sizes(key, spec)
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
