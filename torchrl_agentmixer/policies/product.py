"""Decentralized policies: products of individual policies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import nn
from torchrl.data import Composite, Unbounded
from torchrl.envs.transforms import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules.tensordict_module.rnn import recurrent_mode

from torchrl_agentmixer._choices import check_memory
from torchrl_agentmixer.distributions import (
    GroupedDistributionBuilder,
    GroupedMixtureBuilder,
    GroupedNormalMixtureBuilder,
    IGCCategorical,
)
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import CategoricalActor, GaussianActor, RecurrentEncoder
from torchrl_agentmixer.policies.action_spaces import (
    ContinuousDistribution,
    action_bounds,
    bounds_of,
    distribution_class,
)

LOG_PROB_KEY = "action_log_prob"


def actor_module(group: AgentGroup, **kwargs: Any) -> TensorDictModule:
    """Build the default decentralized actor of a group as a ``TensorDictModule``.

    Args:
        group (AgentGroup): the agents.

    Keyword Args:
        **kwargs: options of :class:`CategoricalActor` or :class:`GaussianActor`.

    Examples:
        >>> group = AgentGroup("agents", n_agents=2, observation_dim=4, action_dim=3, discrete=True)
        >>> actor_module(group).out_keys
        [('agents', 'logits'), ('agents', 'features')]
    """
    cls = CategoricalActor if group.discrete else GaussianActor
    sizes = group.n_agents, group.observation_dim, group.action_dim
    actor = cls(*sizes, image_shape=group.image_shape, **kwargs)
    in_keys, out_keys = [group.key("observation")], [*group.param_keys, group.key("features")]
    if not actor.memory_dim:
        return TensorDictModule(actor, in_keys=in_keys, out_keys=out_keys)
    return RecurrentActor(actor, in_keys, out_keys, group.key("memory"))


class RecurrentActor(TensorDictModule):
    """Recurrent actor, for single steps and for sequences in TorchRL's recurrent mode.

    It follows TorchRL's ``GRUModule``: it reads the memory under ``memory_key``, writes it under
    ``("next", memory_key)``, and resets it to zero where ``"is_init"`` is true. Under
    ``torchrl.modules.set_recurrent_mode(True)`` the last batch dimension is time, and only the
    memory before the first step is read. :func:`~torchrl_agentmixer.envs.with_memory` adds both
    entries to an environment.

    Args:
        actor (CategoricalActor or GaussianActor): with ``memory_dim > 0``; or a
            :class:`RecurrentEncoder`.
        in_keys (list of NestedKey): key of the observation.
        out_keys (list of NestedKey): keys of policy parameters and features, or of representations.
        memory_key (NestedKey): key of the memory, ``[*B, n_agents, memory_dim]``.

    Examples:
        >>> from torchrl.modules import set_recurrent_mode
        >>> from tensordict import TensorDict
        >>> group = AgentGroup("agents", n_agents=2, observation_dim=4, action_dim=3, discrete=True)
        >>> actor = actor_module(group, memory_dim=8)
        >>> agents = {"observation": torch.randn(5, 10, 2, 4), "memory": torch.zeros(5, 10, 2, 8)}
        >>> data = TensorDict({"agents": agents, "is_init": torch.zeros(5, 10, 1).bool()}, [5, 10])
        >>> with set_recurrent_mode(True):
        ...     actor(data)["agents", "logits"].shape
        torch.Size([5, 10, 2, 3])
    """

    def __init__(
        self,
        actor: CategoricalActor | GaussianActor | RecurrentEncoder,
        in_keys: list[NestedKey],
        out_keys: list[NestedKey],
        memory_key: tuple[str, str],
    ) -> None:
        super().__init__(
            actor,
            in_keys=[*in_keys, memory_key, "is_init"],
            out_keys=[*out_keys, ("next", *memory_key)],
        )
        self.memory_key = memory_key

    def forward(self, tensordict: TensorDictBase, **kwargs: Any) -> TensorDictBase:
        keys = (self.memory_key, "is_init")
        check_memory("RecurrentActor", {key: tensordict.get(key, None) for key in keys})
        if not recurrent_mode():
            return super().forward(tensordict, **kwargs)
        observation, memory, is_init = (tensordict.get(key) for key in self.in_keys)
        outputs = self.module(observation, memory.select(-3, 0), is_init, unroll=True)
        for key, output in zip(self.out_keys, outputs, strict=True):
            tensordict.set(key, output)
        return tensordict

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The primer of the memory (zeros), for TorchRL's ``get_primers_from_module``."""
        shape = (self.module.n_agents, self.module.memory_dim)
        group, leaf = self.memory_key
        memory = Composite({leaf: Unbounded(shape)}, shape=shape[:1])
        return TensorDictPrimer(Composite({group: memory}), expand_specs=True)


def product_policy(
    groups: Sequence[AgentGroup],
    actors: Sequence[TensorDictModuleBase],
    distribution: ContinuousDistribution = "normal",
    *,
    joint: bool = True,
) -> ProbabilisticTensorDictSequential:
    """Build the product of the individual policies: agents sample independently.

    Args:
        groups (sequence of AgentGroup): the agents.
        actors (sequence of TensorDictModuleBase): write the policies' parameters.
        distribution (str): of continuous actions.

    Keyword Args:
        joint (bool): ``True``: one log-probability per team, ``"action_log_prob"`` ``[*B]``.
            ``False``: one per agent, ``(group, "action_log_prob")`` ``[*B, n]`` (one group only).

    Raises:
        ValueError: for ``joint=False`` with several groups.

    Examples:
        >>> group = AgentGroup("agents", n_agents=2, observation_dim=4, action_dim=3, discrete=True)
        >>> product_policy([group], [actor_module(group)]).out_keys[-2:]
        [('agents', 'action'), 'action_log_prob']
    """
    if not joint and len(groups) > 1:
        raise ValueError(
            f"product_policy: expected one group for `joint=False`, got {[g.name for g in groups]}."
        )
    in_keys: dict[str, NestedKey] = {}
    for group in groups:
        in_keys |= {f"{group.name}.{key[-1]}": key for key in group.param_keys}
        in_keys |= {f"{group.name}.{name}": key for name, key in group.mask_keys.items()}
    builder = GroupedDistributionBuilder(
        {group.name: distribution_class(group, distribution) for group in groups},
        {group.name: {"joint": joint} | action_bounds(group, distribution) for group in groups},
    )
    log_prob_key = LOG_PROB_KEY if joint else groups[0].key(LOG_PROB_KEY)
    policy = ProbabilisticTensorDictSequential(
        *actors, probabilistic_module(groups, in_keys, builder, log_prob_key)
    )
    hide(policy, [group.key("features") for group in groups])
    return policy


def hide(policy: TensorDictSequential, keys: Iterable[NestedKey]) -> None:
    """Keep intermediate entries inside a policy: collectors would copy them at every step."""
    hidden = set(keys)
    policy.select_out_keys(*(key for key in policy.out_keys if key not in hidden))


def mode_policy(
    groups: Sequence[AgentGroup],
    actors: Sequence[TensorDictModuleBase],
    distribution: ContinuousDistribution = "normal",
) -> TensorDictSequential:
    """Build the policy of the individual modes, for any exploration type.

    Args:
        groups (sequence of AgentGroup): the agents.
        actors (sequence of TensorDictModuleBase): write the policies' parameters.
        distribution (str): of continuous actions.

    Examples:
        >>> group = AgentGroup("agents", n_agents=2, observation_dim=4, action_dim=3, discrete=True)
        >>> mode_policy([group], [actor_module(group)]).in_keys
        [('agents', 'observation')]
    """
    modules = []
    for group in groups:
        mask_key = [group.key("action_mask")] if group.masked else []
        modules.append(
            TensorDictModule(
                Mode(group, distribution),
                in_keys=[group.param_keys[0], *mask_key],
                out_keys=[group.key("action")],
            )
        )
    return TensorDictSequential(*actors, *modules)


class _FixedExploration(TensorDictModuleBase):
    """Wrapper of a policy with its own exploration type."""

    exploration: ExplorationType

    def __init__(self, policy: TensorDictModuleBase) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        with set_exploration_type(self.exploration):
            return self.policy(tensordict)


class Sampled(_FixedExploration):
    """Wrapper of a policy that samples for any exploration type.

    Args:
        policy (TensorDictModuleBase): the policy; parameters are shared.

    Examples:
        >>> group = AgentGroup("agents", n_agents=2, observation_dim=4, action_dim=3, discrete=True)
        >>> sampled = Sampled(product_policy([group], [actor_module(group)]))
        >>> sampled.in_keys
        [('agents', 'observation')]
    """

    exploration = ExplorationType.RANDOM


class Greedy(_FixedExploration):
    """Wrapper of a policy that takes its modes for any exploration type.

    Args:
        policy (TensorDictModuleBase): the policy; parameters are shared.

    Examples:
        >>> group = AgentGroup("agents", n_agents=2, observation_dim=4, action_dim=3, discrete=True)
        >>> Greedy(product_policy([group], [actor_module(group)])).in_keys
        [('agents', 'observation')]
    """

    exploration = ExplorationType.DETERMINISTIC


class Mode(nn.Module):
    """Modes of a group's individual policies, given ``logits`` (and a mask) or ``loc``.

    Continuous modes are within the action bounds, as in exported files.
    """

    def __init__(self, group: AgentGroup, distribution: ContinuousDistribution) -> None:
        super().__init__()
        self.group = group
        self.distribution = distribution
        self.cls = distribution_class(group, distribution)
        self.bounds = action_bounds(group, distribution)
        self.limits = {} if self.bounds else bounds_of(group)

    def forward(self, params: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.cls is IGCCategorical:
            return self.cls(params, mask=mask, validate_args=False).mode
        scale = torch.ones_like(params)
        dist = self.cls(params, scale, validate_args=False, **self.bounds)
        mode = dist.deterministic_sample
        for name, limit in self.limits.items():
            mode = mode.clamp(**{{"low": "min", "high": "max"}[name]: limit})
        return mode


def probabilistic_module(
    groups: Sequence[AgentGroup],
    in_keys: dict[str, NestedKey],
    builder: GroupedDistributionBuilder | GroupedMixtureBuilder | GroupedNormalMixtureBuilder,
    log_prob_key: NestedKey,
) -> ProbabilisticTensorDictModule:
    """The module that samples all groups' actions and writes one log-probability."""
    return ProbabilisticTensorDictModule(
        in_keys=in_keys,
        out_keys=[group.key("action") for group in groups],
        distribution_class=builder,  # type: ignore[arg-type]
        return_log_prob=True,
        log_prob_keys=[log_prob_key],
        default_interaction_type=InteractionType.RANDOM,
    )
