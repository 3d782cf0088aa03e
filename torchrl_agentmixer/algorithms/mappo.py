"""MAPPO and IPPO."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase
from torchrl.objectives.value import MultiAgentGAE

from torchrl_agentmixer.algorithms.base import DistributedValueNorm
from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    central_critic,
    in_sequence,
    make_gae,
    make_ppo_loss,
)
from torchrl_agentmixer.algorithms.ppo_config import PPOConfig
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import DecentralizedCritic, value_module
from torchrl_agentmixer.objectives.grouped import GroupedLoss
from torchrl_agentmixer.policies import mode_policy, product_policy

Critics = list[tuple[TensorDictModuleBase, DistributedValueNorm]]


class MAPPO(PPOAlgorithm):
    """MAPPO (`arXiv 2103.01955 <https://arxiv.org/abs/2103.01955>`_): one ratio per agent.

    Independent actors and a central critic. Actors, critic, loss and loop are those of
    :class:`AgentMixer`, without the joint policy. Execution is decentralized: the individual modes.
    The loss is the mean of the groups' losses, weighted by the numbers of agents.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (PPOConfig, optional): hyperparameters.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = MAPPO(env, 160, PPOConfig(epochs=1, num_minibatches=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    images = True
    value_per_agent = False

    def __init__(self, env: EnvBase, total_frames: int, config: PPOConfig | None = None) -> None:
        config = config or PPOConfig()
        groups = self.supported_groups(env)
        actors = config.actors(groups, env)
        policies = [
            product_policy([group], [actor], config.distribution, joint=False)
            for group, actor in zip(groups, actors, strict=True)
        ]
        critics = self.make_critics(env, groups, config)
        losses = []
        for index, (group, policy) in enumerate(zip(groups, policies, strict=True)):
            critic, norm = critics[index if self.value_per_agent else 0]
            loss = make_ppo_loss(
                policy,
                critic,
                config,
                norm,
                trains_critic=self.value_per_agent or index == 0,
                advantage_per_agent=self.value_per_agent,
            )
            if self.value_per_agent:
                loss.set_keys(**value_keys(group))
            losses.append(loss)
        advantages = [
            self.make_advantage(group, critic, config)
            for group, (critic, _) in zip(groups, critics, strict=False)
        ]
        super().__init__(
            config,
            total_frames,
            policy=in_sequence(policies),
            execution_policy=mode_policy(groups, actors, config.distribution),
            critic=in_sequence([critic for critic, _ in critics]),
            loss=grouped_loss(losses, groups),
            advantage=in_sequence(advantages),
        )

    def make_critics(
        self, env: EnvBase, groups: Sequence[AgentGroup], config: PPOConfig
    ) -> Critics:
        """One critic of the state for all groups, with its value normalizer."""
        return [central_critic(env, config)]

    def make_advantage(
        self, group: AgentGroup, critic: TensorDictModuleBase, config: PPOConfig
    ) -> TensorDictModuleBase:
        """GAE of the team."""
        return make_gae(critic, config)


class IPPO(MAPPO):
    """IPPO (`arXiv 2011.09533 <https://arxiv.org/abs/2011.09533>`_): one critic per agent.

    As :class:`MAPPO`, with one value and one advantage (of the team reward) per agent. Each critic
    reads its agent's observation. Critics have no memory.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (PPOConfig, optional): hyperparameters.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = IPPO(env, 160, PPOConfig(epochs=1, num_minibatches=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    value_per_agent = True

    def make_critics(
        self, env: EnvBase, groups: Sequence[AgentGroup], config: PPOConfig
    ) -> Critics:
        """Per group, a value per agent on its own observation."""
        critics: Critics = []
        for group in groups:
            network = DecentralizedCritic(
                group.n_agents,
                group.observation_dim,
                image_shape=group.image_shape,
                share_params=config.share_params,
                device=env.device,
                **config.critic_kwargs,
            )
            norm = DistributedValueNorm(shape=1).to(env.device)
            keys = group.key("observation"), group.key("state_value")
            critics.append((value_module(network, *keys, norm), norm))
        return critics

    def make_advantage(
        self, group: AgentGroup, critic: TensorDictModuleBase, config: PPOConfig
    ) -> TensorDictModuleBase:
        """GAE per agent of a group."""
        gae = MultiAgentGAE(gamma=config.gamma, lmbda=config.gae_lambda, value_network=critic)
        gae.set_keys(**value_keys(group))
        return gae


def grouped_loss(losses: Sequence[nn.Module], groups: Sequence[AgentGroup]) -> nn.Module:
    """Combine the losses of groups; a single loss is returned unchanged."""
    if len(losses) == 1:
        return losses[0]
    return GroupedLoss(losses, [group.n_agents for group in groups])


def value_keys(group: AgentGroup) -> dict[str, NestedKey]:
    """Keys of values per agent, for ``set_keys`` of losses and advantage modules.

    Examples:
        >>> group = AgentGroup("team", 2, observation_dim=1, action_dim=2, discrete=True)
        >>> value_keys(group)["value_target"]
        ('team', 'value_target')
    """
    leaves = {"value": "state_value", "advantage": "advantage", "value_target": "value_target"}
    return {name: group.key(leaf) for name, leaf in leaves.items()}
