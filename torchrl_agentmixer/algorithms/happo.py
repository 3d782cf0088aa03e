"""HAPPO: agents improve one after another, each knowing how those before it have changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss

from torchrl_agentmixer import distributed
from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    PPOConfig,
    make_gae,
    make_ppo_loss,
    make_value_norm,
)
from torchrl_agentmixer.groups import AgentGroup, agent_groups, state_dim
from torchrl_agentmixer.modules import CentralCritic, value_module
from torchrl_agentmixer.objectives import HuberPPOLoss
from torchrl_agentmixer.policies.product import (
    LOG_PROB_KEY,
    ContinuousDistribution,
    actor_module,
    mode_policy,
    product_policy,
)


@dataclass(kw_only=True)
class HAPPOConfig(PPOConfig):
    """Hyperparameters of HAPPO (`arXiv 2109.11251 <https://arxiv.org/abs/2109.11251>`_).

    Args:
        fixed_order: agents learn in the order of their indices instead of a random one, which the
            paper's convergence to a Nash equilibrium asks for.

    Raises:
        ValueError: for ``share_params=True``.
    """

    fixed_order: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share_params:
            raise ValueError(
                "HAPPOConfig: expected `share_params` False, got True: an agent's turn must leave "
                "the others' actors as they are."
            )


class HAPPO(PPOAlgorithm):
    r"""HAPPO (`arXiv 2109.11251 <https://arxiv.org/abs/2109.11251>`_): one agent after another.

    For each batch the agents, those of all groups, take turns in a random order
    :math:`i_1, \ldots, i_n`. In its turn an agent takes all its epochs of PPO on the clipped
    objective of its own ratio :math:`r_{i_m} = \pi_{i_m} / \bar\pi_{i_m}`, new over old,

    .. math:: \mathbb E\left[\min\left(r_{i_m} M_{i_m},\,
              \operatorname{clip}(r_{i_m}, 1 \pm \epsilon)\, M_{i_m}\right)\right], \qquad
              M_{i_m} = \hat A \prod_{l<m} r_{i_l},

    where the agents before it are as their turns have left them and :math:`\hat A` is the team's
    advantage ``[*B, 1]``. The central critic learns after the agents.

    Actors, critic and policies are those of :class:`MAPPO`, never with shared parameters; all
    agents act in one batched call. For its turn an agent's network runs alone, on a view into the
    batched parameters. Execution is decentralized: the individual modes.

    As the paper's published code (HARL): the compound factor is not clipped, advantages are
    standardized over the whole batch before it, gradients are clipped for each agent and for the
    critic apart. Departures from that code: the factor's denominator is the probability that was
    collected, not a second evaluation of it; steps at which an agent had no choice stay in the
    means, as zeros, instead of being taken out; networks, Huber value loss and optimizer are this
    package's, the same for all methods. The LayerNorm after the GRU is one for all agents in this
    package's actors: it stays as initialized, which costs nothing, for each agent's own head
    follows it.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (HAPPOConfig, optional): hyperparameters.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = HAPPO(env, total_frames=160, config=HAPPOConfig(epochs=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    config: HAPPOConfig
    loss: HuberPPOLoss

    def __init__(self, env: EnvBase, total_frames: int, config: HAPPOConfig | None = None) -> None:
        config = config or HAPPOConfig()
        distribution = cast(ContinuousDistribution, config.distribution)
        groups = agent_groups(env)
        actors = [actor_module(group, **config.actor_kwargs).to(env.device) for group in groups]
        policies = [
            product_policy([group], [actor], distribution, joint=False)
            for group, actor in zip(groups, actors, strict=True)
        ]
        policy: TensorDictModuleBase = (
            policies[0] if len(groups) == 1 else TensorDictSequential(*policies)
        )
        value_norm = make_value_norm().to(env.device)
        network = CentralCritic(state_dim(env), device=env.device, **config.critic_kwargs)
        critic = value_module(network, value_norm=value_norm)
        turns = [
            AgentTurn(group, actor, index, config)
            for group, actor in zip(groups, actors, strict=True)
            for index in range(group.n_agents)
        ]
        own = [parameter for turn in turns for parameter in turn.trained_parameters()]
        super().__init__(
            config,
            policy=policy,
            execution_policy=mode_policy(groups, actors, distribution),
            individual_policy=policy,
            critic=critic,
            # Its value loss alone is used; the objectives are the turns'.
            loss=make_ppo_loss(policies[0], critic, config, value_norm),
            advantage=make_gae(critic, config),
            param_groups=[{"params": [*own, *network.parameters()], "lr": config.lr}],
            total_frames=total_frames,
        )
        self.turns = nn.ModuleList(turns)

    def learn(self, data: TensorDictBase) -> TensorDict:
        """A turn for each agent and one for the critic.

        Adds the metrics ``factor``, the mean over turns of the mean compound factor, which is 1 in
        expectation, and ``factor_std``, the mean over turns of its spread over the batch.
        """
        advantage = distributed.standardized(data["advantage"])  # [*B, 1]
        factor = torch.ones_like(advantage)
        logs = []
        for turn in self._order():
            turn.tie()
            own = turn.select(data).set("advantage", factor * advantage)
            metrics = self._mean_over_steps(own, partial(self._actor_step, turn))
            logs.append(
                metrics.set("factor", factor.mean()).set("factor_std", factor.std(correction=0))
            )
            factor = factor * turn.ratio(own)
        critic_metrics = self._mean_over_steps(data, self._critic_step)
        return TensorDict.stack(logs).mean(0).update(critic_metrics)

    def _order(self) -> list[AgentTurn]:
        turns = cast("list[AgentTurn]", list(self.turns))
        if self.config.fixed_order:
            return turns
        order = distributed.from_first(torch.randperm(len(turns)).tolist)
        return [turns[index] for index in order]

    def _actor_step(self, turn: AgentTurn, minibatch: TensorDictBase) -> TensorDict:
        losses = turn.loss(minibatch)
        norm = self._descend(losses["loss_objective"] + losses["loss_entropy"])
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
        norm = self._descend(value_loss.mean())
        return TensorDict(
            {
                "loss_critic": value_loss.mean(),
                "explained_variance": explained_variance.mean(),
                "grad_norm_critic": norm,
            }
        ).detach()


class AgentTurn(nn.Module):
    """One agent's network, alone, and its clipped objective.

    The network's parameters are views into those of its group's batched actor: training it trains
    that agent's row of them, and nothing else. The batched actor's values are the ones that count;
    :meth:`tie` renews the views, in case that it was moved.

    Args:
        group (AgentGroup): of the agent.
        actor (TensorDictModule): of the whole group, built with ``config.actor_kwargs``.
        index (int): of the agent in its group.
        config (PPOConfig): hyperparameters.

    Examples:
        >>> group = AgentGroup("agents", n_agents=3, observation_dim=4, action_dim=2, discrete=True)
        >>> config = HAPPOConfig()
        >>> actor = actor_module(group, **config.actor_kwargs)
        >>> turn = AgentTurn(group, actor, index=1, config=config)
        >>> for parameter in turn.trained_parameters():
        ...     _ = parameter.data.zero_()
        >>> logits = actor(TensorDict({"agents": {"observation": torch.randn(5, 3, 4)}}, [5]))
        >>> (logits["agents", "logits"] == 0).all(-1).all(0).tolist()
        [False, True, False]
    """

    def __init__(
        self, group: AgentGroup, actor: TensorDictModule, index: int, config: PPOConfig
    ) -> None:
        super().__init__()
        self.group = group
        self.index = index
        self._group_actor = (actor,)  # in a tuple: no part of this module
        own = slice(index, index + 1)
        alone = replace(
            group,
            n_agents=1,
            low=None if group.low is None else group.low[own],
            high=None if group.high is None else group.high[own],
        )
        device = next(actor.parameters()).device
        self.actor = actor_module(alone, **config.actor_kwargs).to(device)
        self.tie()
        distribution = cast(ContinuousDistribution, config.distribution)
        self.policy = product_policy([alone], [self.actor], distribution, joint=False)
        self.loss = ClipPPOLoss(
            self.policy,
            None,
            clip_epsilon=config.clip_epsilon_at(0.0),
            entropy_coeff=config.entropy_coeff,
        )

    def tie(self) -> None:
        """Make this network's parameters views into the batched actor's.

        What all agents have in common is tied, and not trained.
        """
        batched = dict(self._group_actor[0].named_parameters())
        for name, parameter in self.actor.named_parameters():
            common = parameter.shape == batched[name].shape
            rows = slice(None) if common else slice(self.index, self.index + 1)
            parameter.data = batched[name].data[rows]
            parameter.requires_grad_(self.group.n_agents == 1 or not common)

    def trained_parameters(self) -> list[nn.Parameter]:
        """The agent's own parameters."""
        return [p for p in self.actor.parameters() if p.requires_grad]

    def select(self, data: TensorDictBase) -> TensorDict:
        """The agent's entries of a batch ``[*B]``, its axis of agents kept: ``[*B, 1, ...]``."""
        leaves = ["observation", "action", LOG_PROB_KEY]
        leaves += ["action_mask"] if self.group.masked else []
        recurrent = "is_init" in self.actor.in_keys
        leaves += ["memory"] if recurrent else []
        own = {
            leaf: data.get(self.group.key(leaf)).narrow(data.ndim, self.index, 1) for leaf in leaves
        }
        selected = TensorDict({self.group.name: own}, data.batch_size, device=data.device)
        return selected.set("is_init", data["is_init"]) if recurrent else selected

    @torch.no_grad()
    def ratio(self, own: TensorDictBase) -> torch.Tensor:
        """New over old probability of the actions in what :meth:`select` returned, ``[*B, 1]``."""
        new = self.policy.get_dist(own.copy()).log_prob(own[self.group.key("action")])
        return (new - own[self.group.key(LOG_PROB_KEY)]).exp()
