"""Mixture of joint categorical policies over several TorchRL groups of agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributions import Distribution, register_kl

from torchrl_agentmixer.distributions.grouped import (
    Actions,
    GroupedBase,
    GroupedDistribution,
    GroupedDistributionBuilder,
    by_group,
    check_same_groups,
    without,
)
from torchrl_agentmixer.distributions.igc_categorical import IGCCategorical
from torchrl_agentmixer.distributions.igc_mixture import IGCMixture, kl_to_product


class GroupedMixture(GroupedBase):
    """One :class:`IGCMixture` over the agents of several groups.

    The team draws one component. All agents are on one axis; groups with fewer actions are padded
    with masked ones.

    Args:
        mixture (IGCMixture): over all agents, ``[*B, n_total]``.
        n_agents (mapping of str to int): agents of each group, in order.

    Examples:
        >>> import torch
        >>> mixture = IGCMixture(torch.zeros(4, 5, 3), torch.zeros(4, 5, 2, 3), torch.zeros(4, 2))
        >>> team = GroupedMixture(mixture, {"scouts": 2, "tanks": 3})
        >>> scouts, tanks = team.sample()
        >>> scouts.shape, tanks.shape, team.log_prob(scouts, tanks).shape
        (torch.Size([4, 2]), torch.Size([4, 3]), torch.Size([4]))
    """

    def __init__(self, mixture: IGCMixture, n_agents: Mapping[str, int]) -> None:
        self.mixture = mixture
        self.n_agents = dict(n_agents)
        self.names = list(n_agents)
        super().__init__(mixture.batch_shape, validate_args=False)

    @property
    def mode(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """Each group's part of the mixture's mode."""
        return self._split(self.mixture.mode)

    @property
    def deterministic_sample(self) -> tuple[torch.Tensor, ...]:
        """The mode."""
        return self.mode

    def sample(self, sample_shape: Sequence[int] = ()) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return self._split(self.mixture.sample(sample_shape))

    def log_prob(self, *actions: Actions) -> torch.Tensor:  # type: ignore[override]
        """Team log-probability ``[*B]``, as :meth:`GroupedDistribution.log_prob`."""
        return self.mixture.log_prob(torch.cat(list(self._per_group(actions)), -1))

    def entropy(self) -> torch.Tensor:
        """Lower bound of the team's entropy, see :meth:`IGCMixture.entropy`."""
        return self.mixture.entropy()

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> GroupedMixture:
        return GroupedMixture(self.mixture.expand(batch_shape), self.n_agents)

    def _split(self, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return actions.split(list(self.n_agents.values()), -1)


@register_kl(GroupedMixture, GroupedDistribution)
def _kl_grouped_mixture(p: GroupedMixture, q: GroupedDistribution) -> torch.Tensor:
    """Upper bound, for groups of :class:`IGCCategorical`; see :func:`kl_to_product`."""
    check_same_groups(p, q)
    logits = [dist.logits for dist in q.distributions.values()]  # type: ignore[attr-defined]
    return kl_to_product(p.mixture, join_agents(logits, torch.finfo(logits[0].dtype).min))


class GroupedMixtureBuilder:
    """Factory of :class:`GroupedMixture`; of :class:`IGCMixture` with one group.

    Arguments are named as in :class:`GroupedDistributionBuilder`; ``component_logits`` belongs to
    the team and has no group. Without ``component_logits`` there are no components: the
    distribution is a product of :class:`IGCCategorical` without perturbation.

    Args:
        names (sequence of str): the groups.
        validate_args (bool, optional): as in :class:`IGCMixture`.

    Examples:
        >>> import torch
        >>> build = GroupedMixtureBuilder(["a", "b"])
        >>> a = {"a.logits": torch.zeros(1, 2, 3), "a.perturbation": torch.zeros(1, 2, 5, 3)}
        >>> b = {"b.logits": torch.zeros(1, 1, 4), "b.perturbation": torch.zeros(1, 1, 5, 4)}
        >>> [x.shape for x in build(component_logits=torch.zeros(1, 5), **a, **b).sample()]
        [torch.Size([1, 2]), torch.Size([1, 1])]
    """

    def __init__(self, names: Sequence[str], validate_args: bool | None = None) -> None:
        self.names, self.validate_args = list(names), validate_args
        self.build_product = GroupedDistributionBuilder(
            dict.fromkeys(names, IGCCategorical),
            {name: {"validate_args": validate_args} for name in names},
        )

    def __call__(
        self, *, component_logits: torch.Tensor | None, **arguments: torch.Tensor
    ) -> Distribution:
        if component_logits is None:
            return self.build_product(**without(("perturbation", "modified_share"), arguments))
        groups = list(by_group(self.names, arguments).values())
        weights: dict[str, Any] = {
            "component_logits": component_logits,
            "validate_args": self.validate_args,
        }
        if len(groups) == 1:
            return IGCMixture(**groups[0], **weights)
        logits = [group["logits"] for group in groups]
        joined: dict[str, Any] = {"logits": join_agents(logits, 0.0)}
        joined["perturbation"] = join_agents([g["perturbation"] for g in groups], 0.0, dim=-3)
        masks = [group.get("mask") for group in groups]
        if any(mask is not None for mask in masks) or len({x.shape[-1] for x in logits}) > 1:
            pairs = zip(masks, logits, strict=True)
            full = [torch.ones_like(x).bool() if mask is None else mask for mask, x in pairs]
            joined["mask"] = join_agents(full, False)
        for name in ("temperature", "strength", "consistency", "modified_share"):
            if name in groups[0]:
                joined[name] = torch.cat([group[name] for group in groups], -2)
        sizes = dict(zip(self.names, (x.shape[-2] for x in logits), strict=True))
        return GroupedMixture(IGCMixture(**joined, **weights), sizes)


def join_agents(tensors: Sequence[torch.Tensor], fill: float | bool, dim: int = -2) -> torch.Tensor:
    """Concatenate groups along the agent axis ``dim``, padded to the largest number of actions.

    Examples:
        >>> join_agents([torch.zeros(1, 2), torch.zeros(1, 3)], fill=1.0).tolist()
        [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    width = max(tensor.shape[-1] for tensor in tensors)
    return torch.cat([F.pad(x, (0, width - x.shape[-1]), value=fill) for x in tensors], dim)
