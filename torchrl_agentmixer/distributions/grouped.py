"""Joint distributions over several TorchRL groups of agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch.distributions import Distribution, kl_divergence, register_kl

Actions = Any  # one tensor per group, a tuple of them, or a tensordict


class GroupedBase(Distribution):
    """Base class of distributions whose samples are tuples of one tensor per group."""

    arg_constraints: ClassVar[dict] = {}
    names: list[str]

    def _per_group(self, actions: Sequence[Actions]) -> Sequence[torch.Tensor]:
        """Convert the arguments of ``log_prob`` to one action tensor per group."""
        given: Any = actions
        if len(actions) == 1 and isinstance(actions[0], tuple):
            given = actions[0]
        elif len(actions) == 1 and isinstance(actions[0], TensorDictBase):
            given = [actions[0].get((name, "action")) for name in self.names]
        if len(given) != len(self.names):
            raise ValueError(
                f"{type(self).__name__}: expected one action tensor per group of {self.names}, "
                f"got {len(given)}."
            )
        return given


class GroupedDistribution(GroupedBase):
    """Product of the joint distributions of several groups.

    A sample is a tuple with one tensor per group. Log-probability and entropy are one number per
    team. TorchRL's ``CompositeDistribution`` keeps one log-probability per group under the group's
    key, where a team's ``[*B]`` does not fit the group's batch size ``[*B, n_agents]``.

    Args:
        distributions (mapping of str to Distribution): one joint distribution per group, all of
            batch shape ``[*B]``.

    Raises:
        ValueError: without a distribution, or for different batch shapes.

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

    def __init__(self, distributions: Mapping[str, Distribution]) -> None:
        if not distributions:
            raise ValueError("GroupedDistribution: expected at least one group, got none.")
        shapes = {name: tuple(dist.batch_shape) for name, dist in distributions.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"GroupedDistribution: expected equal batch shapes, got {shapes}.")
        self.distributions = dict(distributions)
        self.names = list(distributions)
        super().__init__(next(iter(distributions.values())).batch_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(dist.has_rsample for dist in self.distributions.values())

    @property
    def mode(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """Mode of each group."""
        return tuple(dist.mode for dist in self.distributions.values())

    @property
    def deterministic_sample(self) -> tuple[torch.Tensor, ...]:
        """Deterministic sample of each group."""
        return tuple(
            dist.deterministic_sample if hasattr(dist, "deterministic_sample") else dist.mode
            for dist in self.distributions.values()
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(dist.sample(torch.Size(sample_shape)) for dist in self.distributions.values())

    def rsample(self, sample_shape: Sequence[int] = ()) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(dist.rsample(torch.Size(sample_shape)) for dist in self.distributions.values())

    def log_prob(self, *actions: Actions) -> torch.Tensor:  # type: ignore[override]
        """Team log-probability ``[*B]`` of one action tensor per group, in order.

        Also takes a sample (a tuple), and a tensordict with ``(group, "action")`` entries, which
        TorchRL's losses pass when there are several action keys.
        """
        pairs = zip(self.distributions.values(), self._per_group(actions), strict=True)
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
    check_same_groups(p, q)
    terms = [
        kl_divergence(p.distributions[name], q.distributions[name]) for name in p.distributions
    ]
    return torch.stack(terms).sum(0)


def check_same_groups(p: GroupedBase, q: GroupedBase) -> None:
    if p.names != q.names:
        raise ValueError(
            f"kl_divergence: expected the same groups on both sides, got {p.names} and {q.names}."
        )


class GroupedDistributionBuilder:
    """Factory of :class:`GroupedDistribution` with keyword arguments ``"<group>.<argument>"``.

    For ``distribution_class`` of a ``ProbabilisticTensorDictModule`` whose ``in_keys`` map these
    names to entries. With one group it builds that group's distribution.

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
        own = by_group(self.classes, arguments)
        distributions = {
            name: distribution(**own[name], **self.kwargs[name])
            for name, distribution in self.classes.items()
        }
        if len(distributions) == 1:
            return next(iter(distributions.values()))
        return GroupedDistribution(distributions)


def by_group(names: Sequence[str] | Mapping[str, Any], arguments: Mapping[str, Any]) -> dict:
    """Arguments ``"<group>.<argument>"`` as one mapping per group."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in arguments.items():
        group, name = key.rsplit(".", 1)
        found[group][name] = value
    return found


def without(names: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments ``"<group>.<argument>"`` except those of these names.

    Examples:
        >>> without(["strength"], {"a.loc": 1, "a.strength": 2})
        {'a.loc': 1}
    """
    return {key: value for key, value in arguments.items() if key.rsplit(".", 1)[1] not in names}
