"""HAPPO: sequential updates of the agents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    central_critic,
    in_sequence,
    make_gae,
    make_ppo_loss,
)
from torchrl_agentmixer.algorithms.ppo_config import PPOConfig
from torchrl_agentmixer.algorithms.sequential import (
    AgentActor,
    SequentialConfig,
    check_separate_parameters,
    update_order,
)
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.objectives import HAPPOLoss, HuberPPOLoss, optimistic
from torchrl_agentmixer.policies import mode_policy, product_policy
from torchrl_agentmixer.policies.product import LOG_PROB_KEY


@dataclass(kw_only=True)
class HAPPOConfig(PPOConfig, SequentialConfig):
    """Hyperparameters of HAPPO (`arXiv 2109.11251 <https://arxiv.org/abs/2109.11251>`_).

    Raises:
        ValueError: for ``share_params=True`` or ``compile=True``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_separate_parameters(self)
        if self.compile:
            raise ValueError(
                "HAPPOConfig: expected `compile` False, got True: each agent has a loss of its "
                "own, and `torch.compile` would compile them all."
            )


class HAPPO(PPOAlgorithm):
    r"""HAPPO (`arXiv 2109.11251 <https://arxiv.org/abs/2109.11251>`_): sequential agent updates.

    For each batch the agents of all groups are updated in a random order, each with all epochs of
    :class:`~torchrl_agentmixer.objectives.HAPPOLoss`. The central critic is updated after the
    agents. Actors, critic and policies are those of :class:`MAPPO`, with separate parameters. All
    agents act in one batched call; the update of an agent runs its network alone, on views into the
    batched parameters. Execution is decentralized: the individual modes.

    As in the paper's published code (HARL), the factor of earlier agents is not clipped, advantages
    are standardized over the whole batch before the factor multiplies them, and gradients are
    clipped per agent and for the critic. Differences from that code: the factor's denominator is
    the probability at collection; steps at which an agent had one allowed action stay in the means,
    as zeros; networks, Huber value loss and optimizer are this package's.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (HAPPOConfig, optional): hyperparameters.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = HAPPO(env, 160, HAPPOConfig(epochs=1, num_minibatches=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    images = True
    config: HAPPOConfig
    loss: HuberPPOLoss

    def __init__(self, env: EnvBase, total_frames: int, config: HAPPOConfig | None = None) -> None:
        config = config or HAPPOConfig()
        groups = self.supported_groups(env)
        actors = config.actors(groups, env)
        policies = [
            product_policy([group], [actor], config.distribution, joint=False)
            for group, actor in zip(groups, actors, strict=True)
        ]
        critic, value_norm = central_critic(env, config)
        agents = [
            AgentUpdate(group, actor, index, config)
            for group, actor in zip(groups, actors, strict=True)
            for index in range(group.n_agents)
        ]
        own = [parameter for agent in agents for parameter in agent.actor.parameters()]
        super().__init__(
            config,
            total_frames,
            policy=in_sequence(policies),
            execution_policy=mode_policy(groups, actors, config.distribution),
            critic=critic,
            # Only its value loss is used: each agent has its own objective.
            loss=make_ppo_loss(policies[0], critic, config, value_norm),
            advantage=make_gae(critic, config),
            param_groups=[{"params": [*own, *critic.parameters()], "lr": config.lr}],
        )
        self.agents = nn.ModuleList(agents)

    def learn(self, data: TensorDictBase) -> TensorDict:
        """Update each agent, then the critic.

        Adds the metrics ``factor`` and ``factor_std``: mean (1 in expectation) and standard
        deviation over the batch of the factor of earlier agents, averaged over agents.
        """
        advantage = optimistic(self.standardize(data["advantage"]), self.loss.optimism)  # [*B, 1]
        factor = torch.ones_like(advantage)
        logs = []
        for agent in self._order():
            agent.tie()
            own = agent.select(data).set("advantage", advantage).set("factor", factor)
            metrics = self.mean_over_steps(own, partial(self._actor_step, agent))
            logs.append(
                metrics.set("factor", factor.mean()).set("factor_std", factor.std(correction=0))
            )
            factor = factor * agent.loss.ratio(own)
        critic_metrics = self.mean_over_steps(data, self._critic_step)
        return TensorDict.stack(logs).mean(0).update(critic_metrics)

    def _order(self) -> list[AgentUpdate]:
        return update_order(self.agents, self.config.fixed_order)

    def _actor_step(self, agent: AgentUpdate, minibatch: TensorDictBase) -> TensorDict:
        losses = agent.loss(minibatch)
        norm = self.adam_step(losses["loss_objective"] + losses["loss_entropy"])
        return TensorDict(
            {
                "loss_objective": losses["loss_objective"],
                "entropy": losses["entropy"],
                "kl": losses["kl_approx"],
                "clip_fraction": losses["clip_fraction"],
                "ratio": losses["mean_ratio"],
                "grad_norm": norm,
            }
        ).detach()

    def _critic_step(self, minibatch: TensorDictBase) -> TensorDict:
        value_loss, _, explained_variance = self.loss.loss_critic(minibatch.copy())
        norm = self.adam_step(value_loss.mean())
        return TensorDict(
            {
                "loss_critic": value_loss.mean(),
                "explained_variance": explained_variance.mean(),
                "grad_norm_critic": norm,
            }
        ).detach()


class AgentUpdate(AgentActor):
    """One agent's network and loss.

    Args:
        group (AgentGroup): the agent's group.
        actor (TensorDictModule): actor of the whole group, built with ``config.actor_kwargs``.
        index (int): index of the agent in its group.
        config (PPOConfig): hyperparameters.

    Examples:
        >>> group = AgentGroup("agents", n_agents=3, observation_dim=4, action_dim=2, discrete=True)
        >>> config = HAPPOConfig()
        >>> from torchrl_agentmixer.policies import actor_module
        >>> actor = actor_module(group, **config.actor_kwargs)
        >>> agent = AgentUpdate(group, actor, index=1, config=config)
        >>> agent.loss.tensor_keys.sample_log_prob
        ('agents', 'action_log_prob')
    """

    leaves = ("action", LOG_PROB_KEY)

    def __init__(
        self, group: AgentGroup, actor: TensorDictModule, index: int, config: PPOConfig
    ) -> None:
        super().__init__(group, actor, index, **config.actor_kwargs)
        policy = product_policy([self.alone], [self.actor], config.distribution, joint=False)
        self.loss = HAPPOLoss(
            policy,
            clip_epsilon=config.clip_epsilon_at(0.0),
            entropy_coeff=config.entropy_coeff,
        )
        self.loss.set_keys(action=group.key("action"), sample_log_prob=group.key(LOG_PROB_KEY))
