"""Options of the Policy Modifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torchrl_agentmixer._choices import check_at_least, check_known, check_values
from torchrl_agentmixer.groups import AgentGroup


@dataclass(kw_only=True)
class DiscreteModifierOptions:
    """Options of the Policy Modifier where all groups have discrete actions.

    Args:
        channels: token width ``d``.
        head_gain: gain of the heads' orthogonal initialization, which sets the initial deviation of
            the joint policy; the authors use 0.01.
        num_components: components of :class:`~torchrl_agentmixer.distributions.IGCMixture`, or 0
            for the paper's form with one perturbation (Eq. 12).
    """

    channels: int = 32
    head_gain: float = 2.0
    num_components: int = 16


@dataclass(kw_only=True)
class JointScaleOptions:
    """Options of a Policy Modifier that writes the joint scale of continuous actions.

    Args:
        channels: token width ``d``.
        head_gain: gain of the heads' orthogonal initialization.
        scale_bound: ``c``, the largest joint scale, in the unit of the action.
        scale_gain: ``g``, the slope inside the sigmoid.
    """

    channels: int = 64
    head_gain: float = 0.01
    scale_bound: float = 0.75
    scale_gain: float = 0.3


@dataclass(kw_only=True)
class ContinuousModifierOptions(JointScaleOptions):
    """Options of the Policy Modifier where a group has continuous actions.

    Args:
        num_components: components of :class:`~torchrl_agentmixer.distributions.IGCNormalMixture`,
            or 0 for the paper's form, a joint scale.
    """

    num_components: int = 0


def modifier_options(
    groups: Sequence[AgentGroup], given: Mapping[str, Any]
) -> DiscreteModifierOptions | ContinuousModifierOptions:
    """Options of the Policy Modifier of these groups.

    Raises:
        ValueError: for an unknown option, or a value out of range.
    """
    discrete = all(group.discrete for group in groups)
    kind = "discrete" if discrete else "continuous"
    cls = DiscreteModifierOptions if discrete else ContinuousModifierOptions
    check_known(f"option for {kind} actions", given, [field.name for field in fields(cls)])
    options = cls(**given)
    check_at_least("PolicyModifier", 0, num_components=options.num_components)
    if isinstance(options, ContinuousModifierOptions):
        if options.num_components and any(group.discrete for group in groups):
            raise ValueError(
                "PolicyModifier: expected `num_components` 0 for groups of discrete and of "
                f"continuous actions, got {options.num_components}."
            )
        bound, gain = options.scale_bound, options.scale_gain
        positive = {"scale_bound": (bound, bound > 0, "> 0"), "scale_gain": (gain, gain > 0, "> 0")}
        check_values("PolicyModifier", **positive)
    return options
