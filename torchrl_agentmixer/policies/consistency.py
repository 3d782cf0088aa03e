"""Consistency of joint and individual policies (Definitions 5 and 6)."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch.distributions import Distribution, kl_divergence

from torchrl_agentmixer.distributions import (
    GroupedDistribution,
    GroupedMixture,
    GroupedNormalMixture,
    IGCTanhNormal,
)
from torchrl_agentmixer.policies.agent_mixer import AgentMixerPolicy


def mode_agreement(
    joint: tuple[torch.Tensor, ...], individual: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fractions of agents and of teams whose joint mode is the individual mode (Definition 6).

    Args:
        joint (tuple of Tensor): the joint policy's mode per group, ``[*B, n]`` (discrete) or
            ``[*B, n, A]`` (floating point).
        individual (tuple of Tensor): the individual policies' modes, of the same shapes.

    Returns:
        tuple of Tensor: two scalars in [0, 1].

    Examples:
        >>> import torch
        >>> agents, teams = mode_agreement((torch.tensor([[0, 1], [2, 2]]),),
        ...                                (torch.tensor([[0, 0], [2, 2]]),))
        >>> agents.item(), teams.item()
        (0.75, 0.5)
    """
    same = []
    for a, b in zip(joint, individual, strict=True):
        equal = a == b
        same.append(equal.all(-1) if a.is_floating_point() else equal)  # [*B, n]
    agents = torch.cat(same, -1)
    return agents.float().mean(), agents.all(-1).float().mean()


def consistency_metrics(policy: AgentMixerPolicy, data: TensorDictBase) -> TensorDict:
    r"""Mode agreement and :math:`\mathrm{KL}(\pi_\theta \| \pi_\phi)` over a batch (Definition 5).

    Args:
        policy (AgentMixerPolicy): the joint policy.
        data (TensorDictBase): states and observations, ``[*B]``.

    Returns:
        TensorDict: scalars: ``mode_agreement`` (fraction of agents), ``team_mode_agreement``
        (fraction of teams) and, if all actions are discrete, ``divergence`` (nats per team; an
        upper bound for a mixture). Individual scales of continuous actions are not trained, so a
        divergence from them has no meaning.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=4)
        >>> policy = AgentMixerPolicy.from_env(env, strength=0.0)
        >>> consistency_metrics(policy, env.reset())["divergence"].item() < 1e-6
        True
    """
    joint = policy.get_dist(data.copy())
    product = policy.decentralized(deterministic=False).get_dist(data.copy())
    agents, teams = mode_agreement(_modes(joint), _modes(product))
    metrics = TensorDict({"mode_agreement": agents, "team_mode_agreement": teams})
    if all(group.discrete for group in policy.groups):
        metrics["divergence"] = team_divergence(joint, product, data.ndim).mean()
    return metrics


def team_divergence(p: Distribution, q: Distribution, batch_dims: int) -> torch.Tensor:
    r"""``KL(p || q)`` per team, ``[*B]``, in nats; sums over agents for ``joint=False``.

    Args:
        p (Distribution): distribution of a team's actions, such as a policy's ``get_dist(data)``.
        q (Distribution): distribution of the same shapes.
        batch_dims (int): number of dimensions of ``*B``, such as ``data.ndim``.

    Raises:
        NotImplementedError: for distributions without a registered divergence in PyTorch.

    Examples:
        >>> from torchrl_agentmixer.distributions import IGCNormal
        >>> loc, scale = torch.ones(4, 3, 2), torch.ones(())
        >>> agents = [IGCNormal(x, scale, joint=False) for x in (loc, 0 * loc)]
        >>> team_divergence(*agents, batch_dims=1)  # half of the squared distance
        tensor([3., 3., 3., 3.])
    """
    divergence = kl_divergence(p, q)
    return divergence.sum(-1) if divergence.ndim > batch_dims else divergence


def _modes(dist: Distribution) -> tuple[torch.Tensor, ...]:
    """The mode of each group; for squashed Gaussians, the point that is executed."""
    if isinstance(dist, GroupedMixture | GroupedNormalMixture):
        return dist.mode
    groups = dist.distributions.values() if isinstance(dist, GroupedDistribution) else [dist]
    return tuple(
        group.deterministic_sample if isinstance(group, IGCTanhNormal) else group.mode
        for group in groups
    )
