"""Autoregressive MAPPO."""

from __future__ import annotations

from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.mappo import grouped_loss
from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    central_critic,
    in_sequence,
    make_gae,
    make_ppo_loss,
)
from torchrl_agentmixer.algorithms.ppo_config import PPOConfig
from torchrl_agentmixer.policies import AutoregressivePolicy, Greedy


class ARMAPPO(PPOAlgorithm):
    r"""MAPPO with an autoregressive joint policy.

    The factorization of `arXiv 2206.07505 <https://arxiv.org/abs/2206.07505>`_,

    .. math:: \pi(a \mid o) = \prod_{i=1}^n \pi_i(a_i \mid o_i, a_1, \ldots, a_{i-1})

    Agents act in the order of their groups and indices, see
    :class:`~torchrl_agentmixer.policies.AutoregressivePolicy`. Given the observations, their
    actions can be correlated. **Execution is not decentralized**: every agent needs the actions of
    earlier agents. ``execution_policy`` takes each conditional's mode in that order, which may
    differ from the joint mode.

    Actors (with a wider input), critic, loss and loop are those of :class:`MAPPO`. The ratio per
    agent is that of its conditional probability. The entropy bonus is the sum of the conditionals'
    exact entropies (squashed: by quadrature) at the batch's actions. By the chain rule its
    expectation over actions of the current policy is the joint entropy; the batch has one sample
    per state, from the policy at collection. The gradient omits the effect of earlier agents'
    actions on the entropies of later agents.

    Only the factorization is the paper's. This package fixes the order and appends earlier actions
    (one-hot if discrete) to the actors' inputs.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (PPOConfig, optional): hyperparameters.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = ARMAPPO(env, 160, PPOConfig(epochs=1, num_minibatches=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    decentralized_execution = False

    def __init__(self, env: EnvBase, total_frames: int, config: PPOConfig | None = None) -> None:
        config = config or PPOConfig()
        groups = self.supported_groups(env)
        policies = [
            AutoregressivePolicy.build(
                group, groups[:index], distribution=config.distribution, **config.actor_kwargs
            ).to(env.device)
            for index, group in enumerate(groups)
        ]
        critic, value_norm = central_critic(env, config)
        losses = [
            make_ppo_loss(policy, critic, config, value_norm, trains_critic=index == 0)
            for index, policy in enumerate(policies)
        ]
        super().__init__(
            config,
            total_frames,
            policy=in_sequence(policies),
            execution_policy=Greedy(in_sequence(policies)),
            critic=critic,
            loss=grouped_loss(losses, groups),
            advantage=make_gae(critic, config),
        )
