"""Checks of the specs of an environment: what no method can train on is refused."""

from __future__ import annotations

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

TEAM_ENV = "torchrl_agentmixer.envs.team_env(env)"
ONE_GROUP = (
    "Build the environment with one group per agent: a `group_map` such as "
    "`MarlGroupMapType.ONE_GROUP_PER_AGENT`."
)
_CHANNELS = (1, 3, 4)  # of images, where they are first or last
_ONE_CHOICE = f"`{TEAM_ENV}` makes one action of several discrete ones per agent."


def check_equal_sizes(key: NestedKey, spec: TensorSpec) -> None:
    """Raise a ValueError for a stack of different specs, one per agent of a group."""
    if isinstance(spec, Stacked | StackedComposite):
        raise ValueError(
            f"{key!r}: expected entries of one size for all agents of a group, got different "
            f"ones. {ONE_GROUP}"
        )


def image_shape(key: NestedKey, observation: TensorSpec) -> tuple[int, int, int] | None:
    """``(C, H, W)`` of images, whose spec is given without batch size; ``None`` of vectors."""
    if len(observation.shape) == 2:
        return None
    _, channels, height, width = observation.shape
    if width in _CHANNELS and channels not in _CHANNELS:
        raise ValueError(
            f"{key!r}: expected images with channels first, [*B, n_agents, C, H, W], got "
            f"{batched_shape(observation)}: use TorchRL's `ToTensorImage`, before `team_env`."
        )
    return channels, height, width


def check_action(key: NestedKey, action: TensorSpec) -> int:
    """Check the actions of a group, given without batch size; return the number of agents."""
    got = f"got {type(action).__name__} {batched_shape(action)} of dtype {action.dtype}"
    if isinstance(action, Stacked):
        raise ValueError(
            f"{key!r}: expected the same actions for all agents of a group, {got}. {ONE_GROUP} "
            "Or give all agents the largest number of actions, and write an action mask."
        )
    if isinstance(action, OneHot):
        raise ValueError(
            f"{key!r}: expected categorical actions, {got}: build the environment with "
            "`categorical_actions=True`."
        )
    advice = _ONE_CHOICE if len(action.shape) == 2 else ""
    discrete = type(action) is Categorical
    continuous = isinstance(action, Bounded | Unbounded) and action.dtype.is_floating_point
    if not (discrete or continuous):
        raise ValueError(
            f"{key!r}: expected one categorical action per agent (`Categorical`) or continuous "
            f"actions (`Bounded`, `Unbounded`), {got}. {advice}"
        )
    if len(action.shape) != (1 if discrete else 2):
        expected = "[*B, n_agents]" if discrete else "[*B, n_agents, A]"
        raise ValueError(f"{key!r}: expected {expected}, {got}. {advice if discrete else ''}")
    return action.shape[0]


def check_array(key: NestedKey, spec: TensorSpec, ndims: tuple[int, ...], expected: str) -> None:
    """Check that an entry, given without batch size, is float32 and has one of ``ndims``."""
    check_equal_sizes(key, spec)
    if len(spec.shape) not in ndims:
        raise ValueError(
            f"{key!r}: expected {expected}, got {batched_shape(spec)}: TorchRL's "
            "`FlattenObservation`, before `team_env`, makes a vector."
        )
    if spec.dtype != torch.float32:
        raise ValueError(
            f"{key!r}: expected float32, got {spec.dtype}: use `{TEAM_ENV}`, or TorchRL's "
            "`DoubleToFloat` or `DTypeCastTransform`."
        )


def batched_shape(spec: TensorSpec) -> str:
    """The shape, for errors, of a spec without batch size."""
    return f"[{', '.join(['*B', *map(str, spec.shape)])}]"


def entry_spec(env: EnvBase, key: NestedKey, advice: str) -> TensorSpec:
    """The spec of an entry without batch size; a KeyError with advice if there is none."""
    specs = env.observation_spec_unbatched
    available = list(specs.keys(True, True))
    if key not in available:
        raise KeyError(
            f"{type(env).__name__} has no entry {key!r}: expected it among {available}. {advice}"
        )
    return specs[key]
