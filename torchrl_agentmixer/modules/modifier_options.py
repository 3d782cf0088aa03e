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

    They are also those for groups of discrete and groups of continuous actions.

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

    num_components = 0  # a field of ContinuousModifierOptions


@dataclass(kw_only=True)
class ContinuousModifierOptions(JointScaleOptions):
    """Options of the Policy Modifier where all groups have continuous actions.

    Args:
        channels: token width ``d``.
        head_gain: gain of the heads' orthogonal initialization, which sets the initial shifts.
        num_components: components of :class:`~torchrl_agentmixer.distributions.IGCNormalMixture`,
            or 0 for the paper's form, a joint scale with the options of
            :class:`JointScaleOptions`.
    """

    channels: int = 32
    head_gain: float = 1.0
    num_components: int = 16


def modifier_options(
    groups: Sequence[AgentGroup], given: Mapping[str, Any]
) -> DiscreteModifierOptions | JointScaleOptions:
    """Options of the Policy Modifier of these groups.

    Raises:
        ValueError: for an unknown option, or a value out of range.
    """
    discrete = all(group.discrete for group in groups)
    kind = "discrete" if discrete else "continuous"
    cls = DiscreteModifierOptions if discrete else ContinuousModifierOptions
    check_known(f"option for {kind} actions", given, [field.name for field in fields(cls)])
    both_kinds = not discrete and any(group.discrete for group in groups)
    num_components = given.get("num_components", 0 if both_kinds else cls.num_components)
    check_at_least("PolicyModifier", 0, num_components=num_components)
    if both_kinds and num_components:
        raise ValueError(
            "PolicyModifier: expected `num_components` 0 for groups of discrete and of "
            f"continuous actions, got {num_components}."
        )
    without_effect = sorted(given.keys() & {"scale_bound", "scale_gain"})
    if num_components and without_effect:
        raise ValueError(
            f"PolicyModifier: expected `num_components=0` for {without_effect}, options of a joint "
            f"scale, got {num_components}."
        )
    options: DiscreteModifierOptions | JointScaleOptions
    if discrete or num_components:
        options = cls(**given)
    else:
        own = {name: value for name, value in given.items() if name != "num_components"}
        options = JointScaleOptions(**own)
    if isinstance(options, JointScaleOptions):
        bound, gain = options.scale_bound, options.scale_gain
        positive = {"scale_bound": (bound, bound > 0, "> 0"), "scale_gain": (gain, gain > 0, "> 0")}
        check_values("PolicyModifier", **positive)
    return options
