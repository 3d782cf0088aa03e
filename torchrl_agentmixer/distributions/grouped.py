"""One joint distribution over several TorchRL groups of agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch.distributions import Distribution, kl_divergence, register_kl


class GroupedDistribution(Distribution):
    """Independent distributions of several groups, given the state, as one distribution.

    Samples are tuples with one tensor for each group; log-probabilities and entropies are one
    number for the whole team. TorchRL's ``CompositeDistribution`` keeps one log-probability for
    each group under the group's own key, where a team's ``[*B]`` does not fit the group's batch
    size ``[*B, n_agents]``.

    Args:
        distributions (mapping of str to Distribution): one joint distribution for each group, all
            of batch shape ``[*B]``.

    Raises:
        ValueError: for no distribution, or batch shapes that differ.

    Examples:
        >>> import torch
        >>> from torchrl_agentmixer.distributions import IGCCategorical, IGCNormal
        >>> team = GroupedDistribution({
        ...     "scouts": IGCCategorical(torch.zeros(4, 2, 5)),
        ...     "tanks": IGCNormal(torch.zeros(4, 3, 2), torch.ones(4, 3, 2)),
        ... })
        >>> scouts, tanks = team.sample()
        >>> scouts.shape, tanks.shape, team.log_prob(scouts, tanks).shape
        (torch.Size([4, 2]), torch.Size([4, 3, 2]), torch.Size([4]))
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, distributions: Mapping[str, Distribution]) -> None:
        if not distributions:
            raise ValueError("GroupedDistribution: expected at least one group, got none.")
        shapes = {name: tuple(dist.batch_shape) for name, dist in distributions.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"GroupedDistribution: expected equal batch shapes, got {shapes}.")
        self.distributions = dict(distributions)
        super().__init__(next(iter(distributions.values())).batch_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(dist.has_rsample for dist in self.distributions.values())

    @property
    def mode(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """Each group's mode."""
        return tuple(dist.mode for dist in self.distributions.values())

    @property
    def deterministic_sample(self) -> tuple[torch.Tensor, ...]:
        """Each group's deterministic sample."""
        return tuple(
            dist.deterministic_sample if hasattr(dist, "deterministic_sample") else dist.mode
            for dist in self.distributions.values()
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(dist.sample(torch.Size(sample_shape)) for dist in self.distributions.values())

    def rsample(self, sample_shape: Sequence[int] = ()) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(dist.rsample(torch.Size(sample_shape)) for dist in self.distributions.values())

    def log_prob(self, *actions: torch.Tensor | TensorDictBase) -> torch.Tensor:  # type: ignore[override]
        """Team log-probability ``[*B]`` of one action tensor for each group, in order.

        Also takes one tensordict with ``(group, "action")`` entries, which is what TorchRL's
        losses pass when there are several action keys.
        """
        if len(actions) == 1 and isinstance(actions[0], TensorDictBase):
            tensordict = actions[0]
            actions = tuple(tensordict.get((name, "action")) for name in self.distributions)
        if len(actions) != len(self.distributions):
            raise ValueError(
                f"GroupedDistribution: expected one action tensor for each of "
                f"{list(self.distributions)}, got {len(actions)}."
            )
        pairs = zip(self.distributions.values(), actions, strict=True)
        return torch.stack([dist.log_prob(action) for dist, action in pairs]).sum(0)

    def entropy(self) -> torch.Tensor:
        """Team entropy ``[*B]``, in nats."""
        return torch.stack([dist.entropy() for dist in self.distributions.values()]).sum(0)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> GroupedDistribution:
        shape = torch.Size(batch_shape)
        return GroupedDistribution(
            {name: dist.expand(shape) for name, dist in self.distributions.items()}
        )


@register_kl(GroupedDistribution, GroupedDistribution)
def _kl_grouped(p: GroupedDistribution, q: GroupedDistribution) -> torch.Tensor:
    if p.distributions.keys() != q.distributions.keys():
        raise ValueError(
            "kl_divergence: expected the same groups on both sides, got "
            f"{list(p.distributions)} and {list(q.distributions)}."
        )
    terms = [
        kl_divergence(p.distributions[name], q.distributions[name]) for name in p.distributions
    ]
    return torch.stack(terms).sum(0)


class GroupedDistributionBuilder:
    """Builds a :class:`GroupedDistribution` from keyword arguments named ``"<group>.<argument>"``.

    Meant as ``distribution_class`` of a ``ProbabilisticTensorDictModule`` whose ``in_keys`` map
    those names to entries; with a single group it builds that group's distribution itself.

    Args:
        classes (mapping of str to callable): the distribution of each group.
        kwargs (mapping of str to mapping, optional): fixed arguments of each group.

    Examples:
        >>> import torch
        >>> from torchrl_agentmixer.distributions import IGCCategorical
        >>> build = GroupedDistributionBuilder({"a": IGCCategorical, "b": IGCCategorical})
        >>> params = {"a.logits": torch.zeros(1, 2, 3), "b.logits": torch.zeros(1, 1, 4)}
        >>> build(**params).batch_shape
        torch.Size([1])
    """

    def __init__(
        self,
        classes: Mapping[str, Callable[..., Distribution]],
        kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.classes = dict(classes)
        self.kwargs = {name: dict((kwargs or {}).get(name, {})) for name in classes}

    def __call__(self, **arguments: torch.Tensor | None) -> Distribution:
        by_group: dict[str, dict[str, Any]] = {name: {} for name in self.classes}
        for key, value in arguments.items():
            group, name = key.rsplit(".", 1)
            by_group[group][name] = value
        distributions = {
            name: distribution(**by_group[name], **self.kwargs[name])
            for name, distribution in self.classes.items()
        }
        if len(distributions) == 1:
            return next(iter(distributions.values()))
        return GroupedDistribution(distributions)
