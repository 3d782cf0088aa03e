"""Distance to an identifiable pair, measured over episodes of the individual policies."""

from __future__ import annotations

import torch
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_agentmixer.envs import with_memory
from torchrl_agentmixer.policies import AgentMixerPolicy
from torchrl_agentmixer.policies.consistency import team_divergence


def identifiability_gap(
    policy: AgentMixerPolicy, env: EnvBase, *, max_steps: int, gamma: float = 0.99, seed: int = 0
) -> float:
    r"""Divergence from an identifiable pair, where the *product* policy goes (Definition 5).

    .. math:: E_{(s, b) \sim \rho^{\pi_\phi}}\left[
              \mathrm{KL}\left(\pi_\theta(a | s) \,\|\, \pi_\phi(a | b)\right)\right]

    with the discounted occupancy :math:`\rho^{\pi_\phi}` of the individual policies, each of which
    samples. The paper's occupancy sums to the expected discounted length of an episode; here it is
    normalized, so that the unit is nats for a step. Zero: the joint policy is the product of its
    individuals, wherever they go. (:func:`consistency_metrics` has the same KL over any batch,
    such as one that the joint policy collected.)

    With a correlation seed the divergence is given the seed, averaged: an upper bound of that of
    the joint policy in which the seed is summed out. A mixture with many joint actions has an
    upper bound as well, see :class:`~torchrl_agentmixer.distributions.IGCMixture`.

    Args:
        policy (AgentMixerPolicy): the joint policy.
        env (EnvBase): a batch of environments, one episode in each; it is seeded and stepped here.

    Keyword Args:
        max_steps (int): steps after which an unfinished episode counts as it is.
        gamma (float): discount of the occupancy, in (0, 1].
        seed (int): of the episodes; the global generator is left as it was.

    Returns:
        float: nats for the whole team, never negative but for rounding.

    Raises:
        ValueError: for a ``gamma`` out of range.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=16)
        >>> policy = AgentMixerPolicy.from_env(env, strength=0.0)  # no noise: the product itself
        >>> identifiability_gap(policy, env, max_steps=12) < 1e-6
        True
        >>> policy.set_coefficients(strength=1.0)
        >>> identifiability_gap(policy, env, max_steps=12) > 1e-6
        True
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"identifiability_gap: expected `gamma` in (0, 1], got {gamma}.")
    product = policy.decentralized(deterministic=False)
    env = with_memory(env, product)
    with torch.random.fork_rng(), torch.no_grad():
        env.set_seed(seed)
        torch.manual_seed(seed)
        with set_exploration_type(ExplorationType.RANDOM):
            data = env.rollout(max_steps, product, break_when_any_done=False)
        divergence = team_divergence(
            policy.get_dist(data.copy()), product.get_dist(data.copy()), data.ndim
        )  # [*B, T]
    done = data["next", "done"].squeeze(-1)
    running = done.cumsum(-1) == done.long()  # until the first end, which is included
    weights = running * gamma ** torch.arange(done.shape[-1], device=done.device)
    return float((weights * divergence).sum() / weights.sum())
