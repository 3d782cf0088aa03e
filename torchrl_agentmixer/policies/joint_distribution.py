"""Coefficients and IGC distribution of AgentMixer's joint policy, as TensorDict modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModuleBase

from torchrl_agentmixer._choices import check_known
from torchrl_agentmixer.distributions import (
    GroupedDistributionBuilder,
    GroupedMixtureBuilder,
    GroupedNormalMixtureBuilder,
)
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import IGCCoefficients, IGCSchedules, PlanSchedules, PolicyModifier
from torchrl_agentmixer.policies.product import (
    LOG_PROB_KEY,
    ContinuousDistribution,
    action_bounds,
    distribution_class,
    probabilistic_module,
)


class AnnealedModifier(TensorDictModuleBase):
    """Policy Modifier and the coefficients of its output.

    The Modifier does not run while the coefficients cancel its output: the IGC distribution then
    gets no perturbation.

    Args:
        modifier (PolicyModifier): writes the perturbation.
        coefficients (IGCCoefficients): write strength and other coefficients.

    Examples:
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=4)
        >>> *actors, deviation, joint = AgentMixerPolicy.from_env(env, strength=0.0).module
        >>> data = deviation(actors[0](env.reset()))
        >>> ("agents", "strength") in data.keys(True), ("agents", "perturbation") in data.keys(True)
        (True, False)
    """

    def __init__(self, modifier: PolicyModifier, coefficients: IGCCoefficients) -> None:
        super().__init__()
        self.modifier, self.coefficients = modifier, coefficients
        self.in_keys = list(modifier.in_keys)
        self.out_keys = [*coefficients.out_keys, *modifier.out_keys]
        # A joint scale, of groups with continuous actions beside others, always counts.
        self.only_perturbs = len(coefficients.in_keys) == len(modifier.groups)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.coefficients(tensordict)
        if self.only_perturbs and self.coefficients.cancel_perturbation:
            # Entries of an earlier call, when the perturbation counted.
            return tensordict.exclude(*self.modifier.out_keys, inplace=True)
        return self.modifier(tensordict)


def make_coefficients(
    groups: Sequence[AgentGroup], modifier: PolicyModifier, schedules: Mapping[str, Any]
) -> IGCCoefficients | None:
    """The module that writes the coefficients; ``None`` for a joint scale of continuous actions."""
    cls = IGCSchedules if any(group.discrete for group in groups) else PlanSchedules
    check_known("option of AgentMixerPolicy", schedules, [field.name for field in fields(cls)])
    perturbed = [group for group in groups if group.discrete or modifier.num_components]
    if schedules and not perturbed:
        raise ValueError(
            f"AgentMixerPolicy: expected no schedules without discrete actions or components, got "
            f"{sorted(schedules)}: remove them, or set `num_components`."
        )
    if not perturbed:
        return None
    values = cls(**schedules).schedules()
    if not modifier.num_components:
        del values["modified_share"]
    return IGCCoefficients([group.param_keys[0] for group in perturbed], **values)


def make_joint_module(
    groups: Sequence[AgentGroup],
    modifier: PolicyModifier,
    coefficients: IGCCoefficients | None,
    distribution: ContinuousDistribution,
    joint: bool,
    validate_args: bool | None,
) -> ProbabilisticTensorDictModule:
    """The module that samples joint actions, given the entries of actors and Modifier."""
    in_keys: dict[str, NestedKey] = {}
    kwargs: dict[str, dict[str, Any]] = {}
    for group in groups:
        if coefficients is not None and (group.discrete or modifier.num_components):
            leaves = [*group.param_names, *coefficients.schedules]
            keys = {leaf: group.key(leaf) for leaf in leaves}
            keys["perturbation"] = modifier.key(group, "perturbation")
        else:
            keys = {"loc": group.key("loc"), "scale": modifier.key(group, "joint_scale")}
        in_keys |= {f"{group.name}.{name}": key for name, key in (keys | group.mask_keys).items()}
        bounds = action_bounds(group, distribution)
        kwargs[group.name] = {"joint": joint, "validate_args": validate_args} | bounds
    builder: GroupedMixtureBuilder | GroupedNormalMixtureBuilder | GroupedDistributionBuilder
    if modifier.num_components:
        in_keys["component_logits"] = modifier.tensor_keys.component_logits
        if groups[0].discrete:
            builder = GroupedMixtureBuilder([group.name for group in groups], validate_args)
        else:
            builder = GroupedNormalMixtureBuilder(kwargs, squashed=distribution == "tanh_normal")
    else:
        classes = {group.name: distribution_class(group, distribution) for group in groups}
        builder = GroupedDistributionBuilder(classes, kwargs)
    log_prob_key = LOG_PROB_KEY if joint else groups[0].key(LOG_PROB_KEY)
    return probabilistic_module(groups, in_keys, builder, log_prob_key)


def check_parts(
    groups: Sequence[AgentGroup],
    actors: Sequence[TensorDictModuleBase],
    modifier: PolicyModifier,
) -> None:
    """Raise a ValueError for groups, actors and Modifier that do not match."""
    if not groups:
        raise ValueError("AgentMixerPolicy: expected at least one group of agents, got none.")
    written = [key for actor in actors for key in actor.out_keys]
    for group in groups:
        missing = [key for key in group.param_keys if key not in written]
        if missing:
            raise ValueError(
                f"AgentMixerPolicy: expected actors that write {group.param_keys}, got actors that "
                f"write {written}: {missing} missing."
            )
    given, expected = (
        [(group.name, group.n_agents, group.params_dim) for group in side]
        for side in (modifier.groups, groups)
    )
    if given != expected:
        raise ValueError(
            "AgentMixerPolicy: expected a PolicyModifier for groups of (name, n_agents, "
            f"params_dim) {expected}, got one for {given}."
        )


def check_joint(groups: Sequence[AgentGroup], modifier: PolicyModifier, joint: bool) -> None:
    """Raise a ValueError where there is no log-probability per agent."""
    discrete_mixture = modifier.num_components and groups[0].discrete
    if not joint and (len(groups) > 1 or discrete_mixture):
        raise ValueError(
            "AgentMixerPolicy: expected one group and no mixture of discrete actions for "
            f"`joint=False`, got groups {[group.name for group in groups]} and "
            f"{modifier.num_components} components: use `joint=True`, or `num_components=0`."
        )
