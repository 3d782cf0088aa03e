"""Distributions and bounds of a group's actions."""

from __future__ import annotations

from typing import Any, Literal

import torch

from torchrl_agentmixer.distributions import IGCCategorical, IGCNormal, IGCTanhNormal
from torchrl_agentmixer.groups import AgentGroup

ContinuousDistribution = Literal["normal", "tanh_normal"]


def distribution_class(group: AgentGroup, distribution: ContinuousDistribution) -> type:
    """The class of a group's IGC distribution.

    Raises:
        ValueError: for an unknown name.
    """
    if group.discrete:
        return IGCCategorical
    classes = {"normal": IGCNormal, "tanh_normal": IGCTanhNormal}
    if distribution not in classes:
        raise ValueError(f"expected `distribution` in {sorted(classes)}, got {distribution!r}.")
    return classes[distribution]


def action_bounds(group: AgentGroup, distribution: ContinuousDistribution) -> dict[str, Any]:
    """``low`` and ``high`` of a squashed distribution of bounded actions; else empty.

    Raises:
        ValueError: for infinite bounds.
    """
    bounds = {} if distribution != "tanh_normal" else bounds_of(group)
    for name, bound in bounds.items():
        if not torch.as_tensor(bound).isfinite().all():
            raise ValueError(
                f"{group.key('action')!r}: expected finite bounds for `distribution` "
                f"'tanh_normal', got `{name}` {torch.as_tensor(bound).tolist()}: use 'normal'."
            )
    return bounds


def bounds_of(group: AgentGroup) -> dict[str, Any]:
    """``low`` and ``high`` of continuous actions; empty without bounds."""
    bounds = {} if group.low is None else {"low": group.low, "high": group.high}
    for name, bound in bounds.items():
        # A number if all bounds are equal: it has no device and needs no comparison at run time.
        if (bound == bound.flatten()[0]).all():  # type: ignore[union-attr]
            bounds[name] = bound.flatten()[0].item()  # type: ignore[union-attr, assignment]
    return bounds
