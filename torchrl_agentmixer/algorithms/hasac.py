"""HASAC: sequential updates of independent actors by SAC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.sac_base import SACAlgorithm, SACConfig
from torchrl_agentmixer.algorithms.sequential import (
    AgentActor,
    SequentialConfig,
    check_separate_parameters,
    update_order,
)
from torchrl_agentmixer.objectives import HASACLoss
from torchrl_agentmixer.policies import actor_module, mode_policy, product_policy


@dataclass(kw_only=True)
class HASACConfig(SACConfig, SequentialConfig):
    """Hyperparameters of HASAC (`arXiv 2306.10715 <https://arxiv.org/abs/2306.10715>`_).

    Raises:
        ValueError: for ``share_params=True``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_separate_parameters(self)


class HASAC(SACAlgorithm):
    """HASAC (`arXiv 2306.10715 <https://arxiv.org/abs/2306.10715>`_): sequential SAC updates.

    At each gradient step the critics are updated first, then the agents in a random order, each on
    :class:`~torchrl_agentmixer.objectives.HASACLoss` with actions of the newest policies of the
    agents before it, and last alpha. Actors, critics and policies are those of :class:`MASAC`, with
    separate parameters. All agents act in one batched call; the update of an agent runs its network
    alone, on views into the batched parameters. Execution is decentralized: the squashed individual
    means.

    As in the paper's objective there is one alpha per team; its target is the entropy of the joint
    action, as in :class:`MASAC`. Differences from the paper's published code (HARL): that code has,
    where alpha is learned, one alpha per agent for the actors and one for the critics' targets,
    targets of several steps, and optionally Huber value loss and value normalization; replay,
    learning rates and networks are this package's.

    **Discrete actions are not supported**, see :class:`AgentMixerSAC`; HARL has them by
    Gumbel-softmax samples.

    Args:
        env (EnvBase): sizes are read from its specs; it needs a ``"state"``.
        total_frames (int): environment steps of the whole training.
        config (HASACConfig, optional): hyperparameters.

    Raises:
        ValueError: for discrete actions, or several groups of agents.
        KeyError: for an environment without a state.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("vmas/predator_prey", num_envs=16)
        >>> algorithm = HASAC(env, 1000, HASACConfig(gradient_steps=2))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> len(algorithm.replay), sorted(metrics)[:2]
        (160, ['alpha', 'entropy'])
    """

    loss_class = HASACLoss

    config: HASACConfig
    loss: HASACLoss

    def __init__(self, env: EnvBase, total_frames: int, config: HASACConfig | None = None) -> None:
        config = config or HASACConfig()
        (group,) = self.supported_groups(env)
        options = config.squashed_actor_kwargs
        actor = actor_module(group, **options).to(env.device)
        agents = [AgentPolicy(group, actor, index, **options) for index in range(group.n_agents)]
        super().__init__(
            env,
            config,
            total_frames,
            policy=product_policy([group], [actor], "tanh_normal"),
            execution_policy=mode_policy([group], [actor], "tanh_normal"),
            actor_parameters=[p for agent in agents for p in agent.parameters()],
        )
        self.agents: Any = nn.ModuleList(agents)
        self._action_key = group.key("action")

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Train on one batch of trajectories ``[num_envs, steps]`` and on replay.

        Returns:
            dict: as :class:`MASAC`; the policy's loss is the mean over agents.
        """
        for agent in self.agents:
            agent.tie()
        return super().update(batch)

    def _sac_step(self, minibatch: TensorDictBase) -> TensorDict:
        """Update the critics, then the agents in sequence, then alpha."""
        alpha = self.loss.log_alpha.detach().exp()
        loss_critic, _ = self.loss.qvalue_v2_loss(minibatch)
        self.gradient_step(loss_critic, self.optimizer)
        loss_actor, log_prob = self._update_actors(minibatch)
        loss_alpha = self.loss.alpha_loss(log_prob).mean()
        self.gradient_step(loss_alpha, self.optimizer)
        self._targets.step()
        return TensorDict(
            {
                "loss_actor": loss_actor,
                "loss_critic": loss_critic,
                "loss_alpha": loss_alpha,
                "alpha": alpha,
                "entropy": -log_prob.mean(),
            }
        ).detach()

    def _update_actors(self, minibatch: TensorDictBase) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the agents in sequence.

        Returns:
            tuple of Tensor: mean loss of the agents; log-probability ``[N]`` of the team's samples.
        """
        with torch.no_grad():
            actions = self.policy.get_dist(minibatch.copy()).sample()  # [N, n, A]
        losses, log_probs = [], []
        for agent in update_order(self.agents, self.config.fixed_order):
            team = minibatch.copy().set(self._action_key, actions)
            own = agent.select(minibatch)
            loss, log_prob = self.loss.agent_loss(team, agent.policy.get_dist(own), agent.index)
            self.gradient_step(loss, self.optimizer)
            with torch.no_grad():
                actions[:, agent.index] = agent.policy.get_dist(own).sample().squeeze(1)
            losses.append(loss.detach())
            log_probs.append(log_prob)
        return torch.stack(losses).mean(), torch.stack(log_probs).sum(0)


class AgentPolicy(AgentActor):
    """One agent's network and policy.

    Args:
        *args: as :class:`AgentActor`.

    Keyword Args:
        **kwargs: as :class:`AgentActor`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.policy = product_policy([self.alone], [self.actor], "tanh_normal")
