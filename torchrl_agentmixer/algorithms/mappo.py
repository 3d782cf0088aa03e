"""MAPPO and IPPO: independent actors under a central critic, or under critics of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import nn
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
from torchrl_agentmixer.groups import AgentGroup, agent_groups, state_dim
from torchrl_agentmixer.modules import CentralCritic, DecentralizedCritic, value_module
from torchrl_agentmixer.objectives import HuberPPOLoss
from torchrl_agentmixer.policies.product import actor_module, mode_policy, product_policy

CriticParts = list[tuple[TensorDictModuleBase, PopArtValueNorm, ValueEstimatorBase]]


class MAPPO(PPOAlgorithm):
    """MAPPO (`arXiv 2103.01955 <https://arxiv.org/abs/2103.01955>`_): a ratio for each agent.

    Same actors, critic, loss and loop as :class:`AgentMixer`; only the joint policy is missing.
    Execution is decentralized: the individual modes. Several groups of agents have a loss each, and
    count by their numbers of agents.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (PPOConfig, optional): hyperparameters.

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
        actors = [actor_module(group, **config.actor_kwargs).to(env.device) for group in groups]
        policies = [
            product_policy([group], [actor], config.distribution, joint=False)  # type: ignore[arg-type]
            for group, actor in zip(groups, actors, strict=True)
        ]
        parts = self.make_critics(env, groups, config)
        critics, _, advantages = zip(*parts, strict=True)
        losses = []
        for index, (group, policy) in enumerate(zip(groups, policies, strict=True)):
            critic, value_norm, _ = parts[min(index, len(parts) - 1)]
            # The loss of a critic that groups share counts once.
            own = config if index < len(parts) else replace(config, critic_coeff=0.0)
            losses.append(self._make_loss(group, policy, critic, value_norm, own))
        policy = policies[0] if len(groups) == 1 else TensorDictSequential(*policies)
        loss = losses[0] if len(groups) == 1 else GroupedLoss(losses, [g.n_agents for g in groups])
        advantage = advantages[0] if len(parts) == 1 else TensorDictSequential(*advantages)
        critic = critics[0] if len(parts) == 1 else TensorDictSequential(*critics)
        super().__init__(
            config,
            policy=policy,
            execution_policy=mode_policy(groups, actors, config.distribution),  # type: ignore[arg-type]
            individual_policy=policy,
            critic=critic,
            loss=loss,
            advantage=advantage,
            param_groups=[
                {"params": [*policy.parameters(), *critic.parameters()], "lr": config.lr}
            ],
            total_frames=total_frames,
        )

    def _make_loss(
        self,
        group: AgentGroup,
        policy: TensorDictModuleBase,
        critic: TensorDictModuleBase,
        value_norm: PopArtValueNorm,
        config: PPOConfig,
    ) -> HuberPPOLoss:
        loss = make_ppo_loss(
            policy, critic, config, value_norm, advantage_per_agent=self.value_per_agent
        )
        if self.value_per_agent:
            loss.set_keys(**value_keys(group))
        return loss

    def make_critics(
        self, env: EnvBase, groups: Sequence[AgentGroup], config: PPOConfig
    ) -> CriticParts:
        """Critic, its value normalizer and its advantages: of the team, from the state."""
        value_norm = make_value_norm().to(env.device)
        network = CentralCritic(state_dim(env), device=env.device, **config.critic_kwargs)
        critic = value_module(network, value_norm=value_norm)
        return [(critic, value_norm, make_gae(critic, config))]


class IPPO(MAPPO):
    """IPPO (`arXiv 2011.09533 <https://arxiv.org/abs/2011.09533>`_): each agent its own critic.

    As :class:`MAPPO`, but every agent's value reads that agent's observation alone, and every
    agent has an advantage of its own from the team reward. Critics have no memory.

    Args:
        env (EnvBase): sizes are read from its specs.
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

    def make_critics(
        self, env: EnvBase, groups: Sequence[AgentGroup], config: PPOConfig
    ) -> CriticParts:
        """For each group: a value for each agent, of its own observation."""
        parts: CriticParts = []
        for group in groups:
            network = DecentralizedCritic(
                group.n_agents,
                group.observation_dim,
                share_params=config.share_params,
                device=env.device,
                **config.critic_kwargs,
            )
            value_norm = make_value_norm().to(env.device)
            critic = value_module(
                network, group.key("observation"), group.key("state_value"), value_norm
            )
            gae = MultiAgentGAE(gamma=config.gamma, lmbda=config.gae_lambda, value_network=critic)
            gae.set_keys(**value_keys(group))
            parts.append((critic, value_norm, gae))
        return parts


class GroupedLoss(nn.Module):
    """The losses of several groups as one: means, each group counting by its number of agents.

    Args:
        losses (sequence of nn.Module): one for each group; each maps a batch to scalars. What one
            of them does not write is the mean of the others.
        n_agents (sequence of int): of each group.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> from torchrl_agentmixer.algorithms import make_algorithm
        >>> env = make_env("vmas/simple_tag", num_envs=4)
        >>> len(make_algorithm("mappo", env, 1000).loss.losses)
        2
    """

    def __init__(self, losses: Sequence[nn.Module], n_agents: Sequence[int]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.n_agents = tuple(n_agents)

    def forward(self, batch: TensorDictBase) -> TensorDict:
        """All losses and metrics of ``batch`` ``[*B]``, as scalars."""
        outputs = [loss(batch) for loss in self.losses]
        mean = {}
        for key in dict.fromkeys(key for output in outputs for key in output.keys()):  # noqa: SIM118
            terms = [
                (n, output[key].mean())
                for n, output in zip(self.n_agents, outputs, strict=True)
                if key in output
            ]
            mean[key] = sum(n * term for n, term in terms) / sum(n for n, _ in terms)
        return TensorDict(mean)


def value_keys(group: AgentGroup) -> dict:
    """Keys of values of each agent, for ``set_keys`` of a loss and of an advantage.

    Examples:
        >>> group = AgentGroup("team", 2, observation_dim=1, action_dim=2, discrete=True)
        >>> value_keys(group)["value_target"]
        ('team', 'value_target')
    """
    return {
        "value": group.key("state_value"),
        "advantage": group.key("advantage"),
        "value_target": group.key("value_target"),
    }
