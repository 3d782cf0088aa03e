"""One categorical action per agent in place of several discrete ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, TensorSpec
from torchrl.envs import EnvBase, Transform, TransformedEnv

from torchrl_agentmixer._specs import ONE_GROUP, batched_shape
from torchrl_agentmixer.envs.base import flag_spec

MAX_COMBINATIONS = 1024


def combine_actions(env: EnvBase) -> EnvBase:
    """Make one categorical action per agent of several discrete ones.

    An agent with choices of 3, 3 and 10 options gets one action of 90 values, the combinations of
    its options. Its policy is a distribution over them, so an agent's choices may depend on each
    other, and probabilities, modes and masks are exact.

    Args:
        env (EnvBase): a multi-agent environment.

    Returns:
        EnvBase: ``env`` itself, if no agent has several discrete actions; else ``env`` with
        :class:`CombinedActions`.

    Raises:
        ValueError: for agents of one group with different choices, more than 1024 combinations, or
            an action mask of another size than :class:`CombinedActions` takes.

    Examples:
        >>> from torchrl.envs import VmasEnv
        >>> options = {"continuous_actions": False, "multidiscrete_actions": True}
        >>> env = VmasEnv("simple_reference", num_envs=4, **options)
        >>> env.action_spec["agents", "action"].shape  # of 3, 3 and 10 options
        torch.Size([4, 2, 3])
        >>> env = combine_actions(env)
        >>> env.action_spec["agents", "action"].n, env.rollout(2)["agents", "action"].shape
        (90, torch.Size([4, 2, 2]))
    """
    specs = env.full_action_spec_unbatched
    choices = {}
    for key in specs.keys(True, True):
        options = _options(key, specs[key])
        if options:
            choices[key] = options
    return TransformedEnv(env, CombinedActions(env, choices), auto_unwrap=False) if choices else env


class CombinedActions(Transform):
    """The transform of :func:`combine_actions`.

    The first choice is the most significant digit of the combined action. Where the environment
    writes an action mask of all options ``[*B, n_agents, sum of options]``, TorchRL's form for
    ``MultiCategorical``, a combination is allowed if all of its options are.

    Args:
        env (EnvBase): the environment.
        choices (mapping): by key of an action, the number of options of each choice.
    """

    def __init__(self, env: EnvBase, choices: Mapping[NestedKey, Sequence[int]]) -> None:
        super().__init__(in_keys=[], out_keys=[])
        self.choices = dict(choices)
        observed, actions = env.observation_spec_unbatched, env.full_action_spec_unbatched
        self.mask_keys = {}
        for index, (key, options) in enumerate(self.choices.items()):
            table, places = combinations(options).to(actions[key].dtype), option_places(options)
            self.register_buffer(f"table_{index}", table.to(env.device), persistent=False)
            self.register_buffer(f"places_{index}", places.to(env.device), persistent=False)
            mask_key = (*key[:-1], "action_mask")
            if mask_key in observed.keys(True, True):
                _check_mask(mask_key, observed[mask_key], sum(options))
                self.mask_keys[key] = mask_key

    def _inv_call(self, data: TensorDictBase) -> TensorDictBase:
        for index, key in enumerate(self.choices):
            data.set(key, self.get_buffer(f"table_{index}")[data.get(key)])
        return data

    def _call(self, data: TensorDictBase) -> TensorDictBase:
        for index, key in enumerate(self.choices):
            if key in self.mask_keys:
                mask, places = data.get(self.mask_keys[key]), self.get_buffer(f"places_{index}")
                data.set(self.mask_keys[key], combined_mask(mask, places))
        return data

    def _reset(self, tensordict: TensorDictBase, reset: TensorDictBase) -> TensorDictBase:
        return self._call(reset)

    def transform_action_spec(self, spec: Composite) -> Composite:
        for key, options in self.choices.items():
            action = spec[key]
            spec[key] = Categorical(
                math.prod(options), shape=action.shape[:-1], device=action.device
            )
        return spec

    def transform_observation_spec(self, spec: Composite) -> Composite:
        for key, mask_key in self.mask_keys.items():
            mask = spec[mask_key]
            shape = (*mask.shape[:-1], math.prod(self.choices[key]))
            spec[mask_key] = flag_spec(*shape, device=mask.device)
        return spec


def combinations(options: Sequence[int]) -> torch.Tensor:
    """All combinations of options, ``[product, choices]``, in the order of combined actions.

    Examples:
        >>> combinations([2, 3]).tolist()
        [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    """
    ranges = [torch.arange(n) for n in options]
    return torch.cartesian_prod(*ranges).reshape(-1, len(options))


def option_places(options: Sequence[int]) -> torch.Tensor:
    """Places of each combination's options in a mask of all options, ``[product, choices]``.

    Examples:
        >>> option_places([2, 3])[:2].tolist()
        [[0, 2], [0, 3]]
    """
    return torch.tensor([0, *options[:-1]]).cumsum(0) + combinations(options)


def combined_mask(mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Whether combinations are allowed, ``[*B, product]``, of a mask ``[*B, sum of options]``.

    Examples:
        >>> flags = torch.tensor([True, False, True, True, False])
        >>> combined_mask(flags, option_places([2, 3])).tolist()
        [True, True, False, False, False, False]
    """
    return mask[..., places].all(-1)


def _options(key: NestedKey, action: TensorSpec) -> list[int]:
    """Options of each choice of one agent, given a spec without batch size; else empty."""
    if type(action) not in (MultiCategorical, Categorical, Binary) or len(action.shape) != 2:
        return []
    if type(action) is MultiCategorical:
        if (action.nvec != action.nvec[0]).any():
            raise ValueError(
                f"{key!r}: expected the same choices for all agents of a group, got "
                f"{action.nvec.tolist()} options. {ONE_GROUP}"
            )
        options = action.nvec[0].tolist()
    else:
        options = [2 if type(action) is Binary else action.space.n] * action.shape[1]
    if math.prod(options) > MAX_COMBINATIONS:
        raise ValueError(
            f"{key!r}: expected at most {MAX_COMBINATIONS} combinations of one agent's discrete "
            f"actions, got choices of {options} options: use fewer options, or continuous actions."
        )
    return options


def _check_mask(key: NestedKey, mask: TensorSpec, size: int) -> None:
    if mask.shape[-1] != size or len(mask.shape) != 2:
        raise ValueError(
            f"{key!r}: expected [*B, n_agents, {size}], a flag for each option of each choice, got "
            f"{batched_shape(mask)}."
        )
