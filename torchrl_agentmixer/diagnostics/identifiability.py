"""Identifiability gap, estimated over episodes of the individual policies."""

from __future__ import annotations

import torch
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_agentmixer._choices import check_values
from torchrl_agentmixer.envs import with_memory
from torchrl_agentmixer.policies import AgentMixerPolicy
from torchrl_agentmixer.policies.consistency import team_divergence
from torchrl_agentmixer.training.randomness import preserved_random_state


def identifiability_gap(
    policy: AgentMixerPolicy, env: EnvBase, *, max_steps: int, gamma: float = 0.99, seed: int = 0
) -> float:
    r"""Divergence of the joint policy from the individual policies (Definition 5).

    .. math:: E_{(s, b) \sim \rho^{\pi_\phi}}\left[
              \mathrm{KL}\left(\pi_\theta(a | s) \,\|\, \pi_\phi(a | b)\right)\right]

    with the discounted occupancy :math:`\rho^{\pi_\phi}` of episodes in which each individual
    policy samples. The occupancy is normalized, unlike the paper's, so that the unit is nats per
    step. The gap is zero if the joint policy is the product of the individual policies in all
    states that these visit. For a mixture with many joint actions it is an upper bound, see
    :class:`~torchrl_agentmixer.distributions.IGCMixture`.

    Args:
        policy (AgentMixerPolicy): the joint policy.
        env (EnvBase): a batch of environments, which is seeded; one episode is used per
            environment.

    Keyword Args:
        max_steps (int): maximum number of steps per episode.
        gamma (float): discount of the occupancy, in (0, 1].
        seed (int): seed of the episodes; the global generators are not changed.

    Returns:
        float: nats per step for the whole team, >= 0 up to rounding.

    Raises:
        ValueError: for a ``gamma`` out of range.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=16)
        >>> policy = AgentMixerPolicy.from_env(env, strength=0.0)
        >>> identifiability_gap(policy, env, max_steps=12) < 1e-6
        True
        >>> policy.set_coefficients(strength=1.0)
        >>> identifiability_gap(policy, env, max_steps=12) > 1e-6
        True
    """
    check_values("identifiability_gap", gamma=(gamma, 0 < gamma <= 1, "in (0, 1]"))
    product = policy.decentralized(deterministic=False)
    env = with_memory(env, product)
    with preserved_random_state(seed), torch.no_grad():
        env.set_seed(seed)
        torch.manual_seed(seed)
        with set_exploration_type(ExplorationType.RANDOM):
            data = env.rollout(max_steps, product, break_when_any_done=False)
        divergence = team_divergence(
            policy.get_dist(data.copy()), product.get_dist(data.copy()), data.ndim
        )  # [*B, T]
    done = data["next", "done"].squeeze(-1)
    running = done.cumsum(-1) == done.long()  # up to the end of the first episode
    weights = running * gamma ** torch.arange(done.shape[-1], device=done.device)
    return float((weights * divergence).sum() / weights.sum())
