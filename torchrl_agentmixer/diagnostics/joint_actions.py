"""Probabilities of all joint actions of a policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributions import Categorical, Distribution, Independent

from torchrl_agentmixer.distributions import GroupedDistribution, IGCMixture


def joint_action_probs(
    dist: Distribution,
    n_actions: Sequence[int] | None = None,
    *,
    max_joint_actions: int = 2**20,
) -> torch.Tensor:
    """Exact probabilities of all joint actions.

    Args:
        dist (Distribution): :class:`~torchrl_agentmixer.distributions.IGCCategorical`,
            :class:`~torchrl_agentmixer.distributions.IGCMixture`, any ``Categorical`` with agents
            on the last batch axis, ``[*B, n_agents]`` (or the ``Independent`` of one), or a
            :class:`~torchrl_agentmixer.distributions.GroupedDistribution` of these, with the
            agents of all groups in order.
        n_actions (sequence of int, optional): number of actions per agent, where they differ;
            masked actions beyond it are removed. Default: the largest number in each group.

    Keyword Args:
        max_joint_actions (int): maximum number of joint actions.

    Returns:
        Tensor: ``[*B, K_1, ..., K_n]``.

    Raises:
        TypeError: for another distribution.
        ValueError: for more than ``max_joint_actions``, or ``n_actions`` that do not fit.

    Examples:
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.diagnostics import correlated_equilibrium_gap
        >>> from torchrl_agentmixer.envs import climbing, make_env
        >>> env = make_env("matrix/climbing", num_envs=1)
        >>> policy = AgentMixerPolicy.from_env(env)
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
            f"({counts}). Raise `max_joint_actions`, or estimate a bound with `best_response_gap`."
        )
    remaining = iter(counts)
    flat = []
    for weights, probs in parts:
        agents = [agent[..., : next(remaining)] for agent in probs.unbind(-2)]  # each [*B, m, K_i]
        every = outer(agents).flatten(-len(agents))  # [*B, m, joint actions of the group]
        flat.append((weights.unsqueeze(-2) @ every).squeeze(-2))
    joint = outer(flat)
    return joint.reshape(*joint.shape[: joint.ndim - len(flat)], *counts)


def outer(policies: Sequence[torch.Tensor]) -> torch.Tensor:
    """Product ``[*B, K_1, ..., K_n]`` of the agents' probabilities ``[*B, K_i]``."""
    joint, *others = policies
    for count, policy in enumerate(others, 1):
        joint = joint.unsqueeze(-1) * policy[(..., *[None] * count, slice(None))]
    return joint


def _components(dist: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``[*B, m]`` and probabilities ``[*B, m, n, K]`` of a group's ``m`` components."""
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
