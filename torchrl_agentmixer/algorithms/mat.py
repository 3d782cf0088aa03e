"""MAT and MAT-Dec: the Multi-Agent Transformer, and decentralized actors under its encoder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from tensordict.nn import (
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import nn
from torchrl.envs import EnvBase
from torchrl.objectives.value import MultiAgentGAE

from torchrl_agentmixer.algorithms.mappo import value_keys
from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    PPOConfig,
    make_ppo_loss,
    make_value_norm,
)
from torchrl_agentmixer.groups import AgentGroup, only_group
from torchrl_agentmixer.modules import ObservationEncoder, value_module
from torchrl_agentmixer.modules.initialization import orthogonal_
from torchrl_agentmixer.modules.mlp import layer_norm_mlp
from torchrl_agentmixer.policies.product import (
    ContinuousDistribution,
    actor_module,
    mode_policy,
    product_policy,
)
from torchrl_agentmixer.policies.transformer import TransformerPolicy


@dataclass(kw_only=True)
class MATDecConfig(PPOConfig):
    """Hyperparameters of MAT-Dec (`arXiv 2205.14953 <https://arxiv.org/abs/2205.14953>`_).

    ``actor_hidden``, ``share_params`` and ``memory_dim`` are of the actors.

    Args:
        embed_dim: entries of a token of the Transformer.
        num_heads: attention heads; they divide ``embed_dim``.
        num_blocks: blocks of the encoder, and of MAT's decoder.

    Raises:
        ValueError: for what the method would not read, ``critic_hidden``, at another value than its
            default.
    """

    embed_dim: int = 64
    num_heads: int = 1
    num_blocks: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("embed_dim", "num_heads", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{type(self).__name__}: expected `{name}` >= 1, got {getattr(self, name)}."
                )
        self._refuse("critic_hidden", "the critic is the Transformer's encoder: set `embed_dim`")

    @property
    def transformer_kwargs(self) -> dict[str, int]:
        """Options of encoder and decoder."""
        return {
            "width": self.embed_dim,
            "num_heads": self.num_heads,
            "num_blocks": self.num_blocks,
        }

    def _refuse(self, name: str, reason: str) -> None:
        default = next(field.default for field in fields(self) if field.name == name)
        if getattr(self, name) != default:
            raise ValueError(
                f"{type(self).__name__}: expected `{name}` {default}, got {getattr(self, name)}: "
                f"{reason}."
            )


@dataclass(kw_only=True)
class MATConfig(MATDecConfig):
    """Hyperparameters of MAT (`arXiv 2205.14953 <https://arxiv.org/abs/2205.14953>`_).

    As :class:`MATDecConfig`, but there are no actors of the agents' own.

    Raises:
        ValueError: for ``memory_dim``, ``actor_hidden`` or ``share_params`` at another value than
            its default.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse("memory_dim", "MAT has no memory; `mat_dec` and `armappo` have")
        self._refuse("actor_hidden", "MAT has no actors but its decoder: set `embed_dim`")
        self._refuse("share_params", "all agents are tokens of one Transformer in any case")


class MAT(PPOAlgorithm):
    r"""The Multi-Agent Transformer (`arXiv 2205.14953 <https://arxiv.org/abs/2205.14953>`_).

    .. math:: \pi(a \mid o) = \prod_{i=1}^n
              \pi(a_i \mid \hat o_1, \ldots, \hat o_n, a_1, \ldots, a_{i-1})

    An encoder maps all observations to representations :math:`\hat o` and a value for each agent;
    a decoder maps these and the actions before an agent's to its policy, see
    :class:`TransformerPolicy`. **Execution is not decentralized**: it needs all observations and
    the agents' actions one after another. ``execution_policy`` takes each agent's mode in order;
    ``individual_policy`` is the same joint policy, sampled: there is no other.

    The objective is Eq. 5's, PPO with a ratio for each agent, of its conditional probability, and
    one advantage for the team, GAE with the mean of the agents' values; the value loss is the mean
    of the agents'. Both train the encoder. The entropy bonus is as in :class:`ARMAPPO`.

    As the paper's published code: the encoder's and the decoder's attention, one block of width 64
    with one head. Departures: each agent's one-hot index is part of its observation, for
    environments that do not say who is who; embeddings are Linear -> ReLU -> LayerNorm; loop,
    optimizer, Huber value loss with clipping and normalized targets are this package's, the same
    for all methods.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (MATConfig, optional): hyperparameters.

    Raises:
        ValueError: for several groups of agents.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = MAT(env, total_frames=160, config=MATConfig(epochs=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    decentralized_execution = False

    def __init__(self, env: EnvBase, total_frames: int, config: MATConfig | None = None) -> None:
        config = config or MATConfig()
        group = only_group(env, "MAT")
        encoder = _encoder(group, config)
        policy = TransformerPolicy.build(
            group,
            encoder,
            distribution=cast(ContinuousDistribution, config.distribution),
            **config.transformer_kwargs,
        ).to(env.device)
        super().__init__(
            config,
            policy=policy,
            execution_policy=policy.deterministic(),
            individual_policy=policy,
            total_frames=total_frames,
            **_critic_parts(policy, encoder, group, config, env),
        )


class MATDec(PPOAlgorithm):
    r"""MAT with decentralized actors (`arXiv 2205.14953 <https://arxiv.org/abs/2205.14953>`_).

    The critic is :class:`MAT`'s encoder with a value for each agent; the actors are those of
    :class:`MAPPO`, each on its own observation, and with memory by ``memory_dim`` (the critic has
    none). Execution is decentralized: the individual modes. Objective as :class:`MAT`'s, of
    independent agents.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (MATDecConfig, optional): hyperparameters.

    Raises:
        ValueError: for several groups of agents.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = MATDec(env, total_frames=160, config=MATDecConfig(epochs=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    def __init__(self, env: EnvBase, total_frames: int, config: MATDecConfig | None = None) -> None:
        config = config or MATDecConfig()
        group = only_group(env, "MAT-Dec")
        distribution = cast(ContinuousDistribution, config.distribution)
        actor = actor_module(group, **config.actor_kwargs).to(env.device)
        policy = product_policy([group], [actor], distribution, joint=False)
        super().__init__(
            config,
            policy=policy,
            execution_policy=mode_policy([group], [actor], distribution),
            individual_policy=policy,
            total_frames=total_frames,
            **_critic_parts(policy, _encoder(group, config), group, config, env),
        )


class _TeamAdvantage(nn.Module):
    """The agents' mean advantage, for each of them: ``[*B, n, 1]``.

    GAE is linear in the values, so that this is GAE with the mean of the agents' values.
    """

    def forward(self, advantage: torch.Tensor) -> torch.Tensor:
        return advantage.mean(-2, keepdim=True).expand_as(advantage)


def _encoder(group: AgentGroup, config: MATDecConfig) -> ObservationEncoder:
    return ObservationEncoder(
        group.n_agents,
        group.observation_dim,
        input_norm=config.input_norm,
        **config.transformer_kwargs,
    )


def _critic_parts(
    policy: TensorDictModuleBase,
    encoder: ObservationEncoder,
    group: AgentGroup,
    config: MATDecConfig,
    env: EnvBase,
) -> dict[str, Any]:
    """The encoder's values and all that learns by them: arguments of :class:`PPOAlgorithm`."""
    head = layer_norm_mlp(encoder.width, (encoder.width,), input_norm=False)
    head.append(orthogonal_(nn.Linear(encoder.width, 1), gain=1.0))
    value_norm = make_value_norm().to(env.device)
    critic = value_module(
        nn.Sequential(encoder, head).to(env.device),
        group.key("observation"),
        group.key("state_value"),
        value_norm,
    )
    keys = value_keys(group)
    gae = MultiAgentGAE(
        gamma=config.gamma,
        lmbda=config.gae_lambda,
        value_network=critic,
        deactivate_vmap=True,  # PyTorch's fast attention has no batching rule
    )
    gae.set_keys(**keys)
    advantage = [keys["advantage"]]
    loss = make_ppo_loss(policy, critic, config, value_norm, advantage_per_agent=True)
    loss.set_keys(**keys)
    # MAT's encoder is the policy's as well; Adam takes each parameter once.
    parameters = dict.fromkeys([*policy.parameters(), *critic.parameters()])
    return {
        "critic": critic,
        "loss": loss,
        "advantage": TensorDictSequential(
            gae, TensorDictModule(_TeamAdvantage(), in_keys=advantage, out_keys=advantage)
        ),
        "param_groups": [{"params": list(parameters), "lr": config.lr}],
    }
