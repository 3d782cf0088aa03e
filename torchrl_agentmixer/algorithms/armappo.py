"""Autoregressive MAPPO: every agent sees the actions of the agents before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from tensordict.nn import (
    TensorDictModuleBase,
    TensorDictSequential,
)
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.mappo import GroupedLoss
from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    PPOConfig,
    make_gae,
    make_ppo_loss,
    make_value_norm,
)
from torchrl_agentmixer.groups import agent_groups, state_dim
from torchrl_agentmixer.modules import CentralCritic, value_module
from torchrl_agentmixer.policies.autoregressive import AutoregressivePolicy
from torchrl_agentmixer.policies.product import (
    ContinuousDistribution,
)


class ARMAPPO(PPOAlgorithm):
    r"""MAPPO with an autoregressive joint policy
    (`arXiv 2206.07505 <https://arxiv.org/abs/2206.07505>`_).

    .. math:: \pi(a \mid o) = \prod_{i=1}^n \pi_i(a_i \mid o_i, a_1, \ldots, a_{i-1})

    Agents act in the order of their groups and indices, see :class:`AutoregressivePolicy`; their
    actions can be correlated, which those of independent policies are not given the observations.
    **Execution is not decentralized**: every agent waits for the actions of those before it, and
    ``execution_policy`` takes each agent's mode in that order (which need not be the mode of the
    joint distribution). ``individual_policy`` is the same joint policy, sampled: there is no other.

    Actors (but for their wider input), critic, loss and loop are those of :class:`MAPPO`, with its
    ratio for each agent, here of the agent's conditional probability. The entropy bonus is the sum
    of the conditionals' entropies, each exact (squashed: by quadrature), at the batch's actions;
    by the chain rule its expectation over actions of the current policy is the joint entropy, and
    the batch is one sample of it for each state, from the policy that collected. How earlier agents
    could raise the entropies of later ones is not in its gradient.

    The paper gives the factorization. This package's choices: the order is fixed, earlier actions
    are further inputs of the actors' first layer (one-hot, or continuous ones as they are), a GRU
    remembers them too, and networks and optimizer are those of all its methods.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (PPOConfig, optional): hyperparameters.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = ARMAPPO(env, total_frames=160, config=PPOConfig(epochs=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    decentralized_execution = False

    def __init__(self, env: EnvBase, total_frames: int, config: PPOConfig | None = None) -> None:
        config = config or PPOConfig()
        groups = agent_groups(env)
        policies = [
            AutoregressivePolicy.build(
                group,
                groups[:index],
                distribution=cast(ContinuousDistribution, config.distribution),
                **config.actor_kwargs,
            ).to(env.device)
            for index, group in enumerate(groups)
        ]
        value_norm = make_value_norm().to(env.device)
        network = CentralCritic(state_dim(env), device=env.device, **config.critic_kwargs)
        critic = value_module(network, value_norm=value_norm)
        # The critic's loss counts once, in the first group's.
        rest = replace(config, critic_coeff=0.0)
        losses = [
            make_ppo_loss(policy, critic, config if index == 0 else rest, value_norm)
            for index, policy in enumerate(policies)
        ]
        loss = losses[0] if len(groups) == 1 else GroupedLoss(losses, [g.n_agents for g in groups])
        policy = _in_order(policies)
        super().__init__(
            config,
            policy=policy,
            execution_policy=_in_order([policy.deterministic() for policy in policies]),
            individual_policy=policy,
            critic=critic,
            loss=loss,  # type: ignore[arg-type]
            advantage=make_gae(critic, config),
            param_groups=[
                {"params": [*policy.parameters(), *network.parameters()], "lr": config.lr}
            ],
            total_frames=total_frames,
        )


def _in_order(policies: Sequence[AutoregressivePolicy]) -> TensorDictModuleBase:
    return policies[0] if len(policies) == 1 else TensorDictSequential(*policies)
