"""Exact distance of a joint policy from an equilibrium of a one-shot game."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from torchrl_agentmixer.diagnostics.joint_actions import outer

# Tolerance of rounding errors in probabilities and their sums.
_TOLERANCE = 1e-5


class EquilibriumGap(NamedTuple):
    r"""The smallest :math:`\epsilon` of an :math:`\epsilon`-approximate equilibrium.

    Args:
        gap: the largest of the agents' gaps, ``[*B]``, >= 0, in units of payoff.
        per_agent: each agent's gain by its best deviation, ``[*B, n_agents]``.
    """

    gap: torch.Tensor
    per_agent: torch.Tensor


def correlated_equilibrium_gap(payoffs: torch.Tensor, joint: torch.Tensor) -> EquilibriumGap:
    r"""Gap to a correlated equilibrium: deviations given the recommended action (Definition 3).

    An agent observes its own action :math:`a_i` of a joint action :math:`a \sim J`, and replaces it
    by the best reply to the conditional distribution of the others' actions:

    .. math:: \sum_{a_i} \max_{b} \sum_{a_{-i}} J(a_i, a_{-i})
              \left[u_i(b, a_{-i}) - u_i(a_i, a_{-i})\right]

    A gap of zero is a correlated equilibrium (`Aumann, 1974
    <https://doi.org/10.1016/0304-4068(74)90037-8>`_).

    Args:
        payoffs (Tensor): ``[n_agents, K_1, ..., K_n]``, or a team payoff ``[K_1, ..., K_n]``.
        joint (Tensor): probabilities of joint actions, ``[*B, K_1, ..., K_n]``; see
            :func:`joint_action_probs`.

    Returns:
        EquilibriumGap: ``[*B]`` and ``[*B, n_agents]``, in units of payoff.

    Raises:
        ValueError: for shapes that do not fit, or a ``joint`` that is not a distribution.

    Examples:
        Chicken: a correlated equilibrium that never recommends daring to both.

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
    payoffs, joint = _check_game(payoffs, joint)
    gains = []
    for agent in range(len(payoffs)):
        values = _deviation_values(payoffs, joint, agent)
        kept = values.diagonal(dim1=-2, dim2=-1)
        gains.append((values.amax(-1) - kept).sum(-1))
    return _largest(gains)


def coarse_correlated_equilibrium_gap(payoffs: torch.Tensor, joint: torch.Tensor) -> EquilibriumGap:
    r"""Gap to a coarse correlated equilibrium: constant deviations (Definition 2).

    .. math:: \max\left(0, \max_{b} E_{a \sim J}\left[u_i(b, a_{-i}) - u_i(a)\right]\right)

    The deviation :math:`b` is chosen before the recommendation. A gap of zero is a coarse
    correlated equilibrium (`Moulin and Vial, 1978 <https://doi.org/10.1007/BF01769190>`_). Each
    agent's gap is at most its :func:`correlated_equilibrium_gap`; arguments and returns are the
    same.

    Examples:
        >>> import torch
        >>> from torchrl_agentmixer.envs import climbing
        >>> product = torch.full((3, 3), 1 / 9)
        >>> coarse_correlated_equilibrium_gap(climbing(), product).per_agent
        tensor([7.1111, 5.1111])
    """
    payoffs, joint = _check_game(payoffs, joint)
    gains = []
    for agent in range(len(payoffs)):
        values = _deviation_values(payoffs, joint, agent)
        kept = values.diagonal(dim1=-2, dim2=-1).sum(-1)
        gains.append((values.sum(-2).amax(-1) - kept).clamp_min(0))
    return _largest(gains)


def nash_gap(
    payoffs: torch.Tensor, policies: torch.Tensor | Sequence[torch.Tensor]
) -> EquilibriumGap:
    r"""Gap to a Nash equilibrium: best replies to independent policies (Definition 1).

    .. math:: \max_{b} u_i(b, \pi_{-i}) - u_i(\pi), \qquad \pi = \prod_i \pi_i

    Args:
        payoffs (Tensor): as in :func:`correlated_equilibrium_gap`.
        policies (sequence of Tensor or Tensor): one policy per agent, ``[*B, K_i]``; or a joint
            distribution ``[*B, K_1, ..., K_n]``, which is replaced by the product of its marginals.

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
        payoffs, joint = _check_game(payoffs, policies)
        n = len(payoffs)
        axes = [tuple(axis for axis in range(-n, 0) if axis != agent - n) for agent in range(n)]
        policies = [joint.sum(axis) if axis else joint for axis in axes]
    if not policies:
        raise ValueError("nash_gap: expected at least one policy, got none.")
    for agent, policy in enumerate(policies):
        _check_distribution(f"policies[{agent}]", policy, 1)
    return coarse_correlated_equilibrium_gap(payoffs, outer(policies))


def _deviation_values(payoffs: torch.Tensor, joint: torch.Tensor, agent: int) -> torch.Tensor:
    """Payoff of ``b`` when ``a_i`` is recommended, times its probability, ``[*B, a_i, b]``."""
    n = len(payoffs)
    batch, count = joint.shape[: joint.ndim - n], payoffs.shape[1 + agent]
    probs = joint.movedim(agent - n, -n).reshape(*batch, count, -1)  # [*B, a_i, a_-i]
    payoff = payoffs[agent].movedim(agent, 0).reshape(count, -1)  # [b, a_-i]
    return probs @ payoff.mT


def _largest(gains: list[torch.Tensor]) -> EquilibriumGap:
    per_agent = torch.stack(gains, -1)
    return EquilibriumGap(per_agent.amax(-1), per_agent)


def _check_game(payoffs: torch.Tensor, joint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Payoffs ``[n_agents, K_1, ..., K_n]`` and probabilities, in one floating-point dtype."""
    n = payoffs.ndim - 1
    layouts = []
    if n >= 1 and payoffs.shape[0] == n and joint.shape[-n:] == payoffs.shape[1:]:
        layouts.append(payoffs)
    if payoffs.ndim and joint.shape[-payoffs.ndim :] == payoffs.shape:
        layouts.append(payoffs.expand(payoffs.ndim, *payoffs.shape))
    if not layouts:
        raise ValueError(
            "equilibrium gap: expected `payoffs` [n_agents, K_1, ..., K_n] or [K_1, ..., K_n], and "
            f"`joint` [*B, K_1, ..., K_n], got {tuple(payoffs.shape)} and {tuple(joint.shape)}."
        )
    if not payoffs.isfinite().all():
        raise ValueError("equilibrium gap: expected finite `payoffs`, got NaN or infinity.")
    # Both layouts may fit, such as [2, 2, 2]; the probabilities sum to 1 in only one of them.
    game = next((g for g in layouts if _is_distribution(joint, len(g))), layouts[0])
    _check_distribution("joint", joint, len(game))
    dtype = torch.promote_types(payoffs.dtype, joint.dtype)
    return game.to(dtype), joint.to(dtype)


def _is_distribution(probs: torch.Tensor, n_axes: int) -> bool:
    total = probs.sum(tuple(range(-n_axes, 0)))
    return bool((probs >= -_TOLERANCE).all() and ((total - 1).abs() <= _TOLERANCE).all())


def _check_distribution(name: str, probs: torch.Tensor, n_axes: int) -> None:
    if not probs.is_floating_point() or probs.ndim < n_axes:
        raise ValueError(
            f"equilibrium gap: expected `{name}` in floating point with at least {n_axes} axes of "
            f"actions, got {probs.dtype} of shape {tuple(probs.shape)}."
        )
    if not _is_distribution(probs, n_axes):
        total = probs.sum(tuple(range(-n_axes, 0)))
        raise ValueError(
            f"equilibrium gap: expected `{name}` of shape {tuple(probs.shape)} to be a "
            f"distribution over its last {n_axes} axes, got a smallest entry of "
            f"{probs.min().item():.4g} and sums from {total.min().item():.4g} to "
            f"{total.max().item():.4g}."
        )
