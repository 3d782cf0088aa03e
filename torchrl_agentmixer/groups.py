"""Groups of agents: sizes and action spaces, read from an environment's specs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict.utils import NestedKey
from torchrl.data import Bounded, Categorical
from torchrl.envs import EnvBase

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer._specs import (
    TEAM_ENV,
    batched_shape,
    check_action,
    check_array,
    entry_spec,
    image_shape,
)

# Entries of tensordicts that TorchRL writes, of other batch sizes than a group's.
RESERVED = frozenset({"collector", "next"})


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
        image_shape: channels, height and width of observations that are images; their product is
            ``observation_dim``.

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
    image_shape: tuple[int, int, int] | None = None

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
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one agent's observation."""
        return self.image_shape or (self.observation_dim,)

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

    Every group has ``(group, "observation")`` ``[*B, n_agents, o]``, float32, or images
    ``[*B, n_agents, C, H, W]``, and ``(group, "action")``, categorical ``[*B, n_agents]`` or
    continuous ``[*B, n_agents, A]``. :func:`~torchrl_agentmixer.envs.team_env` gives most
    environments this layout.

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
        if key[0] in RESERVED:
            raise ValueError(
                f"{type(env).__name__}: expected groups of other names than {sorted(RESERVED)}, "
                f"entries that TorchRL writes, got {key[0]!r}: build the environment with another "
                "`group_map`."
            )
    return {key[0]: check_action(key, specs[key]) for key in keys}


def state_dim(env: EnvBase, state_key: NestedKey = "state") -> int:
    """Number of entries of the environment's state.

    Raises:
        KeyError: if the environment does not write ``state_key``.
        ValueError: for a state of another shape than ``[*B, s]``, or not float32.
    """
    advice = f"`{TEAM_ENV}` writes a state of all observations; or pass another `state_key`."
    state = entry_spec(env, state_key, advice)
    check_array(state_key, state, (1,), "[*B, s]")
    return state.shape[-1]


def state_image_shape(groups: Sequence[AgentGroup], state_dim: int) -> tuple[int, int, int] | None:
    """Shape of a state of all agents' images as one image; ``None`` of another state.

    Examples:
        >>> group = AgentGroup("team", 2, 75, 5, discrete=True, image_shape=(3, 5, 5))
        >>> state_image_shape([group], 150), state_image_shape([group], 8)
        ((6, 5, 5), None)
    """
    shapes = {group.image_shape for group in groups}
    n_agents = sum(group.n_agents for group in groups)
    image_shape = shapes.pop()
    if image_shape is None or shapes or state_dim != n_agents * math.prod(image_shape):
        return None
    channels, height, width = image_shape
    return n_agents * channels, height, width


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
                f"only, got (without *B) {got}: use `{TEAM_ENV}`."
            )


def _group(env: EnvBase, name: str, n_agents: int) -> AgentGroup:
    action, key = env.full_action_spec_unbatched[name, "action"], (name, "observation")
    discrete = type(action) is Categorical
    advice = "Name another or a nested entry by `team_env(env, observation_key=...)`."
    observation = entry_spec(env, key, advice)
    check_array(key, observation, (2, 4), "[*B, n_agents, o] or [*B, n_agents, C, H, W]")
    if observation.shape[0] != n_agents:
        raise ValueError(
            f"{key!r}: expected observations of {n_agents} agents, as there are actions, got "
            f"{batched_shape(observation)}."
        )
    bounded, entries = isinstance(action, Bounded), env.observation_spec_unbatched.keys(True, True)
    return AgentGroup(
        name=name,
        n_agents=n_agents,
        observation_dim=observation.shape[1:].numel(),
        action_dim=action.space.n if discrete else action.shape[1],
        discrete=discrete,
        masked=discrete and (name, "action_mask") in entries,
        leaves=not discrete and (name, "mask") in entries,
        low=action.space.low if bounded else None,
        high=action.space.high if bounded else None,
        image_shape=image_shape(key, observation),
    )
