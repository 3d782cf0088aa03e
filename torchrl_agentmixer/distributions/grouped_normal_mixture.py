"""Mixture of joint Gaussian policies over several TorchRL groups of agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributions import Categorical, Distribution

from torchrl_agentmixer.distributions.grouped import (
    Actions,
    GroupedBase,
    GroupedDistributionBuilder,
    by_group,
    without,
)
from torchrl_agentmixer.distributions.igc_normal import IGCNormal, IGCTanhNormal
from torchrl_agentmixer.distributions.igc_normal_mixture import (
    IGCNormalMixture,
    IGCTanhNormalMixture,
)


class GroupedNormalMixture(GroupedBase):
    """One mixture over the agents of several groups: the team draws one component.

    Args:
        mixtures (mapping of str to IGCNormalMixture): one per group, with the same component
            weights and one log-probability per team.

    Examples:
        >>> import torch
        >>> def mixture(n, a):
        ...     loc, shifts = torch.zeros(4, n, a), torch.zeros(4, n, 5, a)
        ...     return IGCNormalMixture(loc, torch.ones_like(loc), shifts, torch.zeros(4, 5))
        >>> team = GroupedNormalMixture({"scouts": mixture(2, 1), "tanks": mixture(3, 2)})
        >>> scouts, tanks = team.sample()
        >>> scouts.shape, tanks.shape, team.log_prob(scouts, tanks).shape
        (torch.Size([4, 2, 1]), torch.Size([4, 3, 2]), torch.Size([4]))
    """

    has_rsample = False

    def __init__(self, mixtures: Mapping[str, IGCNormalMixture]) -> None:
        self.mixtures = dict(mixtures)
        self.names = list(mixtures)
        first = self.mixtures[self.names[0]]
        self.log_weights = first.log_weights
        super().__init__(first.batch_shape, validate_args=False)

    @property
    def mode(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """Each group's part of the most probable of the components' modes."""
        candidates = [mixture.component_modes for mixture in self.mixtures.values()]
        scores = torch.stack([self.log_prob(*means) for means in zip(*candidates, strict=True)])
        best = scores.argmax(0)[None, ..., None, None]
        return tuple(
            means.gather(0, best.expand(1, *means.shape[1:])).squeeze(0) for means in candidates
        )

    @property
    def deterministic_sample(self) -> tuple[torch.Tensor, ...]:
        """The mode."""
        return self.mode

    def sample(self, sample_shape: Sequence[int] = ()) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        with torch.no_grad():
            weights = Categorical(logits=self.log_weights, validate_args=False)
            drawn = weights.sample(torch.Size(sample_shape))
            return tuple(mixture.sample_component(drawn) for mixture in self.mixtures.values())

    def log_prob(self, *actions: Actions) -> torch.Tensor:  # type: ignore[override]
        """Team log-probability ``[*B]``, as :meth:`GroupedDistribution.log_prob`."""
        pairs = zip(self.mixtures.values(), self._per_group(actions), strict=True)
        each = [mixture.component_log_prob(action).sum(-1) for mixture, action in pairs]
        return (self.log_weights + torch.stack(each).sum(0)).logsumexp(-1)

    def entropy(self) -> torch.Tensor:
        """Lower bound of the team's entropy, see :meth:`IGCNormalMixture.entropy`."""
        return torch.stack([mixture.entropy() for mixture in self.mixtures.values()]).sum(0)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> GroupedNormalMixture:
        shape = torch.Size(batch_shape)
        return GroupedNormalMixture(
            {name: mixture.expand(shape) for name, mixture in self.mixtures.items()}
        )


class GroupedNormalMixtureBuilder:
    """Factory of :class:`GroupedNormalMixture`; of :class:`IGCNormalMixture` with one group.

    Arguments are named as in :class:`GroupedDistributionBuilder`; ``component_logits`` belongs to
    the team and has no group. Without ``component_logits`` there are no components: the
    distribution is the product of the individual policies.

    Args:
        kwargs (mapping of str to mapping): fixed arguments of each group's mixture, in order;
            several groups need ``joint=True``.
        squashed (bool): :class:`IGCTanhNormalMixture` instead of :class:`IGCNormalMixture`.

    Examples:
        >>> import torch
        >>> build = GroupedNormalMixtureBuilder({"a": {"joint": False}})
        >>> own = {"a.loc": torch.zeros(1, 2, 3), "a.scale": torch.ones(1, 2, 3)}
        >>> own["a.perturbation"] = torch.zeros(1, 2, 5, 3)
        >>> build(component_logits=torch.zeros(1, 5), **own).sample().shape
        torch.Size([1, 2, 3])
    """

    def __init__(self, kwargs: Mapping[str, Mapping[str, Any]], squashed: bool = False) -> None:
        self.kwargs = {name: dict(own) for name, own in kwargs.items()}
        self.mixture_class = IGCTanhNormalMixture if squashed else IGCNormalMixture
        product_class = IGCTanhNormal if squashed else IGCNormal
        self.build_product = GroupedDistributionBuilder(
            dict.fromkeys(kwargs, product_class), self.kwargs
        )

    def __call__(
        self, *, component_logits: torch.Tensor | None, **arguments: torch.Tensor
    ) -> Distribution:
        if component_logits is None:
            only = without(("perturbation", "modified_share", "strength"), arguments)
            return self.build_product(**only)
        mixtures = {
            name: self.mixture_class(**own, component_logits=component_logits, **self.kwargs[name])
            for name, own in by_group(self.kwargs, arguments).items()
        }
        if len(mixtures) == 1:
            return next(iter(mixtures.values()))
        return GroupedNormalMixture(mixtures)
