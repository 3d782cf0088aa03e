"""MAT and MAT-Dec: the Multi-Agent Transformer, and decentralized actors under its encoder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import nn
from torchrl.envs import EnvBase
from torchrl.objectives.value import MultiAgentGAE

from torchrl_agentmixer.algorithms.in_turn import InTurnPolicy
from torchrl_agentmixer.algorithms.mappo import value_keys
from torchrl_agentmixer.algorithms.ppo import (
    PPOAlgorithm,
    PPOConfig,
    make_ppo_loss,
    make_value_norm,
)
from torchrl_agentmixer.decentralized import (
    ContinuousDistribution,
    actor_module,
    mode_policy,
    product_policy,
)
from torchrl_agentmixer.groups import AgentGroup, only_group
from torchrl_agentmixer.modules import ActionDecoder, ObservationEncoder, value_module
from torchrl_agentmixer.modules.initialization import orthogonal_
from torchrl_agentmixer.modules.mlp import layer_norm_mlp


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


class TransformerPolicy(InTurnPolicy):
    r"""MAT's joint policy: :math:`\prod_i \pi(a_i \mid \hat o_1, \ldots, \hat o_n, a_{<i})`.

    Acting, the encoder runs once and the decoder as many times as there are agents; both run once
    for :meth:`get_dist`.

    Args:
        encoder (TensorDictModule): maps ``(group, "observation")`` to ``(group,
            "representation")`` ``[*B, n, width]``.
        individual (ProbabilisticTensorDictSequential): maps representations and actions to a
            distribution that is independent over agents, ``joint=False``.
        group (AgentGroup): the agents.

    Keyword Args:
        greedy (bool): act by the conditionals' modes, whatever the exploration type is.

    Examples:
        >>> from tensordict import TensorDict
        >>> group = AgentGroup("agents", n_agents=3, observation_dim=4, action_dim=2, discrete=True)
        >>> policy = TransformerPolicy.build(group, ObservationEncoder(3, 4, width=16), width=16)
        >>> data = policy(TensorDict({"agents": {"observation": torch.randn(5, 3, 4)}}, [5]))
        >>> data["agents", "action"].shape, data["agents", "action_log_prob"].shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
        >>> log_prob = policy.get_dist(data).log_prob(data["agents", "action"])
        >>> torch.allclose(log_prob, data["agents", "action_log_prob"])
        True
    """

    def __init__(
        self,
        encoder: TensorDictModule,
        individual: ProbabilisticTensorDictSequential,
        group: AgentGroup,
        *,
        greedy: bool = False,
    ) -> None:
        super().__init__(individual, group, greedy=greedy)
        self.encoder = encoder
        self._mask_keys = [group.key("action_mask")] if group.masked else []
        self.in_keys = [*encoder.in_keys, *self._mask_keys]
        self.out_keys = list(individual.out_keys)

    @classmethod
    def build(
        cls,
        group: AgentGroup,
        encoder: nn.Module,
        *,
        distribution: ContinuousDistribution = "normal",
        **decoder_kwargs: Any,
    ) -> TransformerPolicy:
        """With MAT's decoder on an encoder of observations.

        Args:
            group (AgentGroup): the agents.
            encoder (nn.Module): maps ``[*B, n, o]`` to ``[*B, n, width]``.

        Keyword Args:
            distribution (str): of continuous actions.
            **decoder_kwargs: options of :class:`ActionDecoder`.
        """
        network = (_DiscreteDecoder if group.discrete else _ContinuousDecoder)(
            group, **decoder_kwargs
        )
        representation = group.key("representation")
        decoder = TensorDictModule(
            network, in_keys=[representation, group.key("action")], out_keys=group.param_keys
        )
        return cls(
            TensorDictModule(
                encoder, in_keys=[group.key("observation")], out_keys=[representation]
            ),
            product_policy([group], [decoder], distribution, joint=False),
            group,
        )

    def deterministic(self) -> TransformerPolicy:
        """The policy that takes each conditional's mode, in order; it shares the parameters."""
        return type(self)(self.encoder, self.individual, self.group, greedy=True)

    def _context(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.encoder(tensordict.select(*self.in_keys))

    def _inputs(self, context: TensorDictBase, action: torch.Tensor) -> TensorDictBase:
        return context.copy().set(self.group.key("action"), action)


class _DiscreteDecoder(ActionDecoder):
    """Logits of each agent's conditional."""

    def __init__(self, group: AgentGroup, **kwargs: Any) -> None:
        super().__init__(
            group.n_agents, group.action_dim, group.action_dim, discrete=True, **kwargs
        )


class _ContinuousDecoder(ActionDecoder):
    """Loc and scale of each agent's conditional; scales as in :class:`GaussianActor`."""

    def __init__(self, group: AgentGroup, *, scale_bound: float = 0.5, **kwargs: Any) -> None:
        size = group.action_dim
        super().__init__(group.n_agents, size, size, discrete=False, **kwargs)
        self.scale_bound = scale_bound
        self.scale_param = nn.Parameter(torch.ones(group.n_agents, size))

    def forward(  # type: ignore[override]
        self, representation: torch.Tensor, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loc = super().forward(representation, action)
        scale = self.scale_bound * torch.sigmoid(self.scale_param)
        return loc, scale.expand_as(loc)


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
