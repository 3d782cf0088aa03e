"""MAPPO and IPPO: independent actors under a central critic, or under critics of their own."""

from __future__ import annotations

from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.modules import PopArtValueNorm
from torchrl.objectives.value import MultiAgentGAE
from torchrl.objectives.value.advantages import ValueEstimatorBase

from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    PPOConfig,
    make_gae,
    make_ppo_loss,
    make_value_norm,
)
from torchrl_agentmixer.decentralized import actor_module, mode_policy, product_policy
from torchrl_agentmixer.groups import AgentGroup, agent_groups, state_dim
from torchrl_agentmixer.modules import CentralCritic, DecentralizedCritic, value_module

CriticParts = tuple[TensorDictModuleBase, ValueEstimatorBase]


class MAPPO(PPOAlgorithm):
    """MAPPO (`arXiv 2103.01955 <https://arxiv.org/abs/2103.01955>`_): a ratio for each agent.

    Same actors, critic, loss and loop as :class:`AgentMixer`; only the joint policy is missing.
    Execution is decentralized: the individual modes.

    Args:
        env (EnvBase): sizes are read from its specs; one group of agents.
        total_frames (int): environment steps of the whole training.
        config (PPOConfig, optional): hyperparameters.

    Raises:
        ValueError: for an environment with several groups.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = MAPPO(env, total_frames=160, config=PPOConfig(epochs=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    value_per_agent = False

    def __init__(self, env: EnvBase, total_frames: int, config: PPOConfig | None = None) -> None:
        config = config or PPOConfig()
        groups = agent_groups(env)
        if len(groups) > 1:
            raise ValueError(
                f"{type(self).__name__}: expected one group of agents, got "
                f"{[group.name for group in groups]}."
            )
        (group,) = groups
        actors = [actor_module(group, **config.actor_kwargs).to(env.device)]
        policy = product_policy(groups, actors, config.distribution, joint=False)  # type: ignore[arg-type]
        value_norm = make_value_norm().to(env.device)
        critic, advantage = self.make_critic(env, group, config, value_norm)
        loss = make_ppo_loss(
            policy, critic, config, value_norm, advantage_per_agent=self.value_per_agent
        )
        if self.value_per_agent:
            loss.set_keys(**_value_keys(group))
        parameters = [*policy.parameters(), *critic.parameters()]
        super().__init__(
            config,
            policy=policy,
            execution_policy=mode_policy(groups, actors, config.distribution),  # type: ignore[arg-type]
            individual_policy=policy,
            critic=critic,
            loss=loss,
            advantage=advantage,
            param_groups=[{"params": parameters, "lr": config.lr}],
            total_frames=total_frames,
        )

    def make_critic(
        self, env: EnvBase, group: AgentGroup, config: PPOConfig, value_norm: PopArtValueNorm
    ) -> CriticParts:
        """One value for the team, of the state."""
        network = CentralCritic(state_dim(env), device=env.device, **config.critic_kwargs)
        critic = value_module(network, value_norm=value_norm)
        return critic, make_gae(critic, config)


class IPPO(MAPPO):
    """IPPO (`arXiv 2011.09533 <https://arxiv.org/abs/2011.09533>`_): each agent its own critic.

    As :class:`MAPPO`, but every agent's value reads that agent's observation alone, and every
    agent has an advantage of its own from the team reward.

    Args:
        env (EnvBase): sizes are read from its specs; one group of agents.
        total_frames (int): environment steps of the whole training.
        config (PPOConfig, optional): hyperparameters.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = IPPO(env, total_frames=160, config=PPOConfig(epochs=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    value_per_agent = True

    def make_critic(
        self, env: EnvBase, group: AgentGroup, config: PPOConfig, value_norm: PopArtValueNorm
    ) -> CriticParts:
        """A value for each agent, of its own observation."""
        network = DecentralizedCritic(
            group.n_agents,
            group.observation_dim,
            share_params=config.share_params,
            device=env.device,
            **config.critic_kwargs,
        )
        critic = value_module(
            network, group.key("observation"), group.key("state_value"), value_norm
        )
        advantage = MultiAgentGAE(gamma=config.gamma, lmbda=config.gae_lambda, value_network=critic)
        advantage.set_keys(**_value_keys(group))
        return critic, advantage


def _value_keys(group: AgentGroup) -> dict:
    return {
        "value": group.key("state_value"),
        "advantage": group.key("advantage"),
        "value_target": group.key("value_target"),
    }
