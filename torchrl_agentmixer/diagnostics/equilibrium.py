"""How far a joint distribution over actions is from an equilibrium of a one-shot game, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.distributions import Categorical, Distribution, Independent

from torchrl_agentmixer.distributions import GroupedDistribution, IGCMixture

# Rounding that a distribution may carry: in its sum, and below zero.
_TOLERANCE = 1e-5


class EquilibriumGap(NamedTuple):
    r"""The smallest :math:`\epsilon` of an :math:`\epsilon`-approximate equilibrium.

    Args:
        gap: the largest of the agents' gaps, ``[*B]``, in units of payoff; never negative.
        per_agent: what each agent gains by its best deviation, ``[*B, n_agents]``.
    """

    gap: torch.Tensor
    per_agent: torch.Tensor


def correlated_equilibrium_gap(payoffs: torch.Tensor, joint: torch.Tensor) -> EquilibriumGap:
    r"""Gain of the best deviation from *recommended* actions (Definition 3; Aumann, 1974).

    An agent that is told its own action :math:`a_i` of a joint action :math:`a \sim J`, and no
    other's, swaps it for the best reply to what it has learned by that:

    .. math:: \sum_{a_i} \max_{b} \sum_{a_{-i}} J(a_i, a_{-i})
              \left[u_i(b, a_{-i}) - u_i(a_i, a_{-i})\right]

    Zero for all agents is a correlated equilibrium (`Aumann, 1974
    <https://doi.org/10.1016/0304-4068(74)90037-8>`_).

    Args:
        payoffs (Tensor): ``[n_agents, K_1, ..., K_n]``, or ``[K_1, ..., K_n]`` where all agents
            receive the same.
        joint (Tensor): probabilities of joint actions, ``[*B, K_1, ..., K_n]``; see
            :func:`joint_action_probs`.

    Returns:
        EquilibriumGap: ``[*B]`` and ``[*B, n_agents]``, in units of payoff.

    Raises:
        ValueError: for shapes that do not fit, or a ``joint`` that is no distribution.

    Examples:
        Chicken: a mediator who never recommends that both dare is obeyed.

        >>> import torch
        >>> row = torch.tensor([[6.0, 2.0], [7.0, 0.0]])
        >>> chicken = torch.stack([row, row.T])
        >>> third = torch.tensor([[1.0, 1.0], [1.0, 0.0]]) / 3
        >>> round(correlated_equilibrium_gap(chicken, third).gap.item(), 6)
        0.0
        >>> always_yield = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> correlated_equilibrium_gap(chicken, always_yield).per_agent
        tensor([1., 1.])
    """
    payoffs, joint = _check_game("correlated_equilibrium_gap", payoffs, joint)
    gains = []
    for agent in range(len(payoffs)):
        values = _deviation_values(payoffs, joint, agent)
        kept = values.diagonal(dim1=-2, dim2=-1)
        gains.append((values.amax(-1) - kept).sum(-1))
    return _largest(gains)


def coarse_correlated_equilibrium_gap(payoffs: torch.Tensor, joint: torch.Tensor) -> EquilibriumGap:
    r"""Gain of the best deviation that is fixed *before* any recommendation (Definition 2).

    .. math:: \max\left(0, \max_{b} E_{a \sim J}\left[u_i(b, a_{-i}) - u_i(a)\right]\right)

    Without the outer maximum it may be negative: to leave a good correlation altogether can cost.
    To stay is allowed. Zero for all agents is a coarse correlated equilibrium (`Moulin and Vial,
    1978 <https://doi.org/10.1007/BF01769190>`_). Never more than
    :func:`correlated_equilibrium_gap`, agent by agent.

    Args:
        payoffs (Tensor): as in :func:`correlated_equilibrium_gap`.
        joint (Tensor): probabilities of joint actions, ``[*B, K_1, ..., K_n]``.

    Returns:
        EquilibriumGap: ``[*B]`` and ``[*B, n_agents]``, in units of payoff.

    Raises:
        ValueError: as :func:`correlated_equilibrium_gap`.

    Examples:
        >>> import torch
        >>> from torchrl_agentmixer.envs import climbing
        >>> product = torch.full((3, 3), 1 / 9)  # the column player would play its third action
        >>> coarse_correlated_equilibrium_gap(climbing(), product).per_agent
        tensor([7.1111, 5.1111])
    """
    payoffs, joint = _check_game("coarse_correlated_equilibrium_gap", payoffs, joint)
    return _coarse_gap(payoffs, joint)


def nash_gap(
    payoffs: torch.Tensor, policies: torch.Tensor | Sequence[torch.Tensor]
) -> EquilibriumGap:
    r"""Gain of the best reply to the others' *independent* policies (Definition 1; Nash, 1951).

    .. math:: \max_{b} u_i(b, \pi_{-i}) - u_i(\pi), \qquad \pi = \prod_i \pi_i

    Args:
        payoffs (Tensor): as in :func:`correlated_equilibrium_gap`.
        policies (sequence of Tensor or Tensor): one policy for each agent, ``[*B, K_i]``; or a
            joint distribution ``[*B, K_1, ..., K_n]``, of which the product of its marginals is
            meant.

    Returns:
        EquilibriumGap: ``[*B]`` and ``[*B, n_agents]``, in units of payoff.

    Raises:
        ValueError: as :func:`correlated_equilibrium_gap`.

    Examples:
        >>> import torch
        >>> matching_pennies = torch.eye(2) * 2 - 1
        >>> payoffs = torch.stack([matching_pennies, -matching_pennies])
        >>> fair, heads = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
        >>> nash_gap(payoffs, [fair, fair]).gap.item(), nash_gap(payoffs, [heads, fair]).gap.item()
        (0.0, 1.0)
    """
    if isinstance(policies, torch.Tensor):
        payoffs, joint = _check_game("nash_gap", payoffs, policies)
        n = len(payoffs)
        axes = [tuple(axis for axis in range(-n, 0) if axis != agent - n) for agent in range(n)]
        policies = [joint.sum(axis) if axis else joint for axis in axes]
    if not policies:
        raise ValueError("nash_gap: expected at least one policy, got none.")
    for agent, policy in enumerate(policies):
        _check_distribution("nash_gap", f"policies[{agent}]", policy, 1)
    return _coarse_gap(*_check_game("nash_gap", payoffs, _outer(policies)))


def joint_action_probs(
    dist: Distribution,
    n_actions: Sequence[int] | None = None,
    *,
    max_joint_actions: int = 2**20,
) -> torch.Tensor:
    """A policy's distribution at a state, as a tensor over joint actions; exact.

    Args:
        dist (Distribution): :class:`~torchrl_agentmixer.distributions.IGCCategorical`,
            :class:`~torchrl_agentmixer.distributions.IGCMixture`, any ``Categorical`` with agents
            on the last batch axis, ``[*B, n_agents]`` (or the ``Independent`` of one), or a
            :class:`~torchrl_agentmixer.distributions.GroupedDistribution` of those, whose groups'
            agents follow each other.
        n_actions (sequence of int, optional): of each agent, where they differ; what a mask
            forbids is then cut off. Without it all agents of a group have as many as the richest.

    Keyword Args:
        max_joint_actions (int): refuse to enumerate more.

    Returns:
        Tensor: ``[*B, K_1, ..., K_n]``.

    Raises:
        TypeError: for another distribution.
        ValueError: for more than ``max_joint_actions``, or ``n_actions`` that do not fit.

    Examples:
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.envs import climbing, make_env
        >>> env = make_env("matrix/climbing", num_envs=1)
        >>> policy = AgentMixerPolicy.from_env(env, form="mixture")
        >>> probs = joint_action_probs(policy.get_dist(env.reset()))
        >>> probs.shape
        torch.Size([1, 3, 3])
        >>> correlated_equilibrium_gap(climbing(), probs).gap.shape
        torch.Size([1])
    """
    groups = dist.distributions.values() if isinstance(dist, GroupedDistribution) else [dist]
    parts = [_components(group) for group in groups]
    available = [probs.shape[-1] for _, probs in parts for _ in range(probs.shape[-2])]
    counts = available if n_actions is None else list(n_actions)
    if len(counts) != len(available) or any(
        not 1 <= count <= most for count, most in zip(counts, available, strict=True)
    ):
        raise ValueError(
            f"joint_action_probs: expected `n_actions` of {len(available)} agents, from 1 to "
            f"{available}, got {counts}."
        )
    size = torch.Size(counts).numel()
    if size > max_joint_actions:
        raise ValueError(
            f"joint_action_probs: expected at most {max_joint_actions} joint actions, got {size} "
            f"({counts}). Raise `max_joint_actions`, or bound the gap with `best_response_gap`, "
            "which enumerates nothing."
        )
    remaining = iter(counts)
    flat = []
    for weights, probs in parts:
        agents = [agent[..., : next(remaining)] for agent in probs.unbind(-2)]  # each [*B, m, K_i]
        every = _outer(agents).flatten(-len(agents))  # [*B, m, joint actions of the group]
        flat.append((weights.unsqueeze(-2) @ every).squeeze(-2))
    joint = _outer(flat)
    return joint.reshape(*joint.shape[: joint.ndim - len(flat)], *counts)


def _components(dist: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``[*B, m]`` and probabilities ``[*B, m, n, K]`` of one group; a product has one."""
    if isinstance(dist, IGCMixture):
        return dist.mixture_distribution.probs, dist.logits.exp()
    base = dist.base_dist if isinstance(dist, Independent) else dist
    if isinstance(base, Categorical) and base.batch_shape:
        probs = base.probs.unsqueeze(-3)
        return probs.new_ones(probs.shape[:-2]), probs
    raise TypeError(
        "joint_action_probs: expected an IGCCategorical, IGCMixture or Categorical [*B, n_agents], "
        f"or a GroupedDistribution of those, got {dist}."
    )


def _outer(policies: Sequence[torch.Tensor]) -> torch.Tensor:
    """``[*B, K_i]`` of each agent to their product ``[*B, K_1, ..., K_n]``."""
    joint, *others = policies
    for count, policy in enumerate(others, 1):
        joint = joint.unsqueeze(-1) * policy[(..., *[None] * count, slice(None))]
    return joint


def _deviation_values(payoffs: torch.Tensor, joint: torch.Tensor, agent: int) -> torch.Tensor:
    """Payoff of playing ``b`` where ``a_i`` is recommended, weighted: ``[*B, a_i, b]``."""
    n = len(payoffs)
    batch, count = joint.shape[: joint.ndim - n], payoffs.shape[1 + agent]
    probs = joint.movedim(agent - n, -n).reshape(*batch, count, -1)  # [*B, a_i, a_-i]
    payoff = payoffs[agent].movedim(agent, 0).reshape(count, -1)  # [b, a_-i]
    return probs @ payoff.mT


def _coarse_gap(payoffs: torch.Tensor, joint: torch.Tensor) -> EquilibriumGap:
    gains = []
    for agent in range(len(payoffs)):
        values = _deviation_values(payoffs, joint, agent)
        kept = values.diagonal(dim1=-2, dim2=-1).sum(-1)
        gains.append((values.sum(-2).amax(-1) - kept).clamp_min(0))
    return _largest(gains)


def _largest(gains: list[torch.Tensor]) -> EquilibriumGap:
    per_agent = torch.stack(gains, -1)
    return EquilibriumGap(per_agent.amax(-1), per_agent)


def _check_game(
    owner: str, payoffs: torch.Tensor, joint: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Payoffs as ``[n_agents, K_1, ..., K_n]``, and both in one floating point type."""
    n = payoffs.ndim - 1
    layouts = []
    if n >= 1 and payoffs.shape[0] == n and joint.shape[-n:] == payoffs.shape[1:]:
        layouts.append(payoffs)
    if payoffs.ndim and joint.shape[-payoffs.ndim :] == payoffs.shape:
        layouts.append(payoffs.expand(payoffs.ndim, *payoffs.shape))
    if not layouts:
        raise ValueError(
            f"{owner}: expected `payoffs` [n_agents, K_1, ..., K_n], or [K_1, ..., K_n] where all "
            "agents receive the same, and `joint` [*B, K_1, ..., K_n], got "
            f"{tuple(payoffs.shape)} and {tuple(joint.shape)}."
        )
    if not payoffs.isfinite().all():
        raise ValueError(f"{owner}: expected finite `payoffs`, got NaN or infinity in them.")
    # Both layouts may fit, e.g. [2, 2, 2]; probabilities then sum to one in one of them only.
    game = next((g for g in layouts if _is_distribution(joint, len(g))), layouts[0])
    _check_distribution(owner, "joint", joint, len(game))
    dtype = torch.promote_types(payoffs.dtype, joint.dtype)
    return game.to(dtype), joint.to(dtype)


def _is_distribution(probs: torch.Tensor, n_axes: int) -> bool:
    total = probs.sum(tuple(range(-n_axes, 0)))
    return bool((probs >= -_TOLERANCE).all() and ((total - 1).abs() <= _TOLERANCE).all())


def _check_distribution(owner: str, name: str, probs: torch.Tensor, n_axes: int) -> None:
    if not probs.is_floating_point():
        raise ValueError(f"{owner}: expected `{name}` in floating point, got {probs.dtype}.")
    if probs.ndim < n_axes:
        raise ValueError(
            f"{owner}: expected `{name}` with at least {n_axes} axis of actions, "
            f"got shape {tuple(probs.shape)}."
        )
    if not _is_distribution(probs, n_axes):
        total = probs.sum(tuple(range(-n_axes, 0)))
        raise ValueError(
            f"{owner}: expected `{name}` to be a distribution over its last {n_axes} axes: not "
            f"negative, with sum 1; got a smallest entry of {probs.min().item():.4g} and sums from "
            f"{total.min().item():.4g} to {total.max().item():.4g} "
            f"(shape {tuple(probs.shape)})."
        )
