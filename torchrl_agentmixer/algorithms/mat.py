"""MAT (Multi-Agent Transformer) and MAT-Dec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.envs import EnvBase
from torchrl.objectives.value import MultiAgentGAE

from torchrl_agentmixer.algorithms.base import DistributedValueNorm
from torchrl_agentmixer.algorithms.mappo import value_keys
from torchrl_agentmixer.algorithms.ppo import PPOAlgorithm, make_ppo_loss
from torchrl_agentmixer.algorithms.ppo_config import ActorConfig, ClippedUpdateConfig
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import ObservationEncoder, value_module
from torchrl_agentmixer.modules.mlp import layer_norm_mlp, orthogonal_
from torchrl_agentmixer.objectives import HuberPPOLoss
from torchrl_agentmixer.policies import Greedy, TransformerPolicy, mode_policy, product_policy


@dataclass(kw_only=True)
class MATConfig(ClippedUpdateConfig):
    """Hyperparameters of MAT (`arXiv 2205.14953 <https://arxiv.org/abs/2205.14953>`_).

    Args:
        embed_dim: token width.
        num_heads: attention heads; must divide ``embed_dim``.
        num_blocks: number of blocks of the encoder, and of MAT's decoder.
    """

    embed_dim: int = 64
    num_heads: int = 1
    num_blocks: int = 1

    @property
    def transformer_kwargs(self) -> dict[str, int]:
        """Options of encoder and decoder."""
        sizes = {"num_heads": self.num_heads, "num_blocks": self.num_blocks}
        return {"width": self.embed_dim, **sizes}


@dataclass(kw_only=True)
class MATDecConfig(MATConfig, ActorConfig):
    """Hyperparameters of MAT-Dec: MAT's encoder and decentralized actors."""


class MAT(PPOAlgorithm):
    r"""The Multi-Agent Transformer (`arXiv 2205.14953 <https://arxiv.org/abs/2205.14953>`_).

    .. math:: \pi(a \mid o) = \prod_{i=1}^n
              \pi(a_i \mid \hat o_1, \ldots, \hat o_n, a_1, \ldots, a_{i-1})

    An encoder maps all observations to representations :math:`\hat o` and one value per agent. A
    decoder maps these and the actions of earlier agents to an agent's policy, see
    :class:`~torchrl_agentmixer.policies.TransformerPolicy`. **Execution is not decentralized**: it
    needs all observations and the actions of earlier agents. ``execution_policy`` takes each
    conditional's mode in order.

    The objective is Eq. 5: PPO with one ratio per agent (of its conditional probability) and one
    advantage per team (GAE with the agents' mean value). The value loss is the mean over agents.
    Both train the encoder. The entropy bonus is that of :class:`ARMAPPO`.

    Attention and sizes (one block, one head, width 64) are those of the paper's published code.
    Differences: each agent's one-hot is appended to its observation; embeddings are Linear -> ReLU
    -> LayerNorm; loop, optimizer and Huber value loss are this package's.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (MATConfig, optional): hyperparameters.

    Raises:
        ValueError: for several groups of agents.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = MAT(env, 160, MATConfig(epochs=1, num_minibatches=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    decentralized_execution = False
    several_groups = False

    def __init__(self, env: EnvBase, total_frames: int, config: MATConfig | None = None) -> None:
        config = config or MATConfig()
        (group,) = self.supported_groups(env)
        encoder = make_encoder(group, config)
        policy = TransformerPolicy.build(
            group, encoder, distribution=config.distribution, **config.transformer_kwargs
        ).to(env.device)
        super().__init__(
            config,
            total_frames,
            policy=policy,
            execution_policy=Greedy(policy),
            **encoder_critic_parts(policy, encoder, group, config, env),
        )


class MATDec(PPOAlgorithm):
    r"""MAT with decentralized actors (`arXiv 2205.14953 <https://arxiv.org/abs/2205.14953>`_).

    The critic is :class:`MAT`'s encoder with one value per agent. The actors are those of
    :class:`MAPPO`, the objective is that of :class:`MAT`. Execution is decentralized: the
    individual modes. The critic has no memory.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (MATDecConfig, optional): hyperparameters.

    Raises:
        ValueError: for several groups of agents.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = MATDec(env, 160, MATDecConfig(epochs=1, num_minibatches=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    several_groups = False

    def __init__(self, env: EnvBase, total_frames: int, config: MATDecConfig | None = None) -> None:
        config = config or MATDecConfig()
        (group,) = self.supported_groups(env)
        actors = config.actors([group], env)
        policy = product_policy([group], actors, config.distribution, joint=False)
        super().__init__(
            config,
            total_frames,
            policy=policy,
            execution_policy=mode_policy([group], actors, config.distribution),
            **encoder_critic_parts(policy, make_encoder(group, config), group, config, env),
        )


class _TeamAdvantage(nn.Module):
    """Mean advantage of the agents, repeated per agent: ``[*B, n, 1]``.

    GAE is linear in the values: this is GAE with the agents' mean value.
    """

    def forward(self, advantage: torch.Tensor) -> torch.Tensor:
        return advantage.mean(-2, keepdim=True).expand_as(advantage)


def make_encoder(group: AgentGroup, config: MATConfig) -> ObservationEncoder:
    """Build the encoder of a group's observations."""
    return ObservationEncoder(
        group.n_agents,
        group.observation_dim,
        input_norm=config.input_norm,
        **config.transformer_kwargs,
    )


def encoder_critic_parts(
    policy: TensorDictModuleBase,
    encoder: ObservationEncoder,
    group: AgentGroup,
    config: MATConfig,
    env: EnvBase,
    loss_class: Callable[..., HuberPPOLoss] = HuberPPOLoss,
) -> dict[str, Any]:
    """Critic on the encoder, loss and advantage, as arguments of :class:`PPOAlgorithm`."""
    head = layer_norm_mlp(encoder.width, (encoder.width,), input_norm=False)
    head.append(orthogonal_(nn.Linear(encoder.width, 1), gain=1.0))
    value_norm = DistributedValueNorm(shape=1).to(env.device)
    network = nn.Sequential(encoder, head).to(env.device)
    critic = value_module(network, group.key("observation"), group.key("state_value"), value_norm)
    keys = value_keys(group)
    gae = MultiAgentGAE(
        gamma=config.gamma,
        lmbda=config.gae_lambda,
        value_network=critic,
        deactivate_vmap=True,  # PyTorch's fast attention has no batching rule
    )
    gae.set_keys(**keys)
    advantage = [keys["advantage"]]
    loss = make_ppo_loss(
        policy, critic, config, value_norm, advantage_per_agent=True, loss_class=loss_class
    )
    loss.set_keys(**keys)
    team = TensorDictModule(_TeamAdvantage(), in_keys=advantage, out_keys=advantage)
    return {"critic": critic, "loss": loss, "advantage": TensorDictSequential(gae, team)}
