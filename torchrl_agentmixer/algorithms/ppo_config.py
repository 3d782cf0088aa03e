"""Hyperparameters of the PPO algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase

from torchrl_agentmixer._fields import check_fields
from torchrl_agentmixer.algorithms.ranges import RANGES
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.policies import actor_module
from torchrl_agentmixer.policies.product import ContinuousDistribution
from torchrl_agentmixer.schedules import Scheduled, as_schedule

ClipEpsilon = float | tuple[Scheduled, Scheduled]


@dataclass(kw_only=True)
class ClippedUpdateConfig:
    """Hyperparameters of PPO's update (AgentMixer's appendix; MAPPO).

    Args:
        lr: learning rate.
        epochs: passes over each batch.
        num_minibatches: minibatches per pass.
        clip_epsilon: clipping range of the ratio: a number, or a pair (below 1, above 1), each of
            which may be a :class:`~torchrl_agentmixer.schedules.Schedule`. A wider range above 1 is
            DAPO's "clip-higher" (`arXiv 2503.14476 <https://arxiv.org/abs/2503.14476>`_): rare
            large advantages act for more than one step.
        optimism: share in [0, 1] by which negative standardized advantages are reduced: a number,
            or a :class:`~torchrl_agentmixer.schedules.Schedule`. It is 1 minus the leak of
            OptiMAPPO (`arXiv 2311.01953 <https://arxiv.org/abs/2311.01953>`_). It helps where
            agents must act together and a lone attempt costs something, and mistakes luck for skill
            where payoffs are stochastic.
        clip_value: clipping range of the value, in normalized units.
        entropy_coeff: weight of the entropy bonus.
        critic_coeff: weight of the value loss.
        huber_delta: threshold of the Huber value loss, in normalized units.
        gamma: discount factor.
        gae_lambda: lambda of GAE.
        max_grad_norm: bound on the norm of the gradient of all parameters.
        adam_eps: epsilon of Adam.
        input_norm: LayerNorm on the networks' inputs, as in the authors' networks.
        distribution: distribution of continuous actions, ``"normal"`` or ``"tanh_normal"``.
        compile: compile the losses and, where the training process collects, the policy, by
            ``torch.compile``. It takes up to a minute at the first batch; on a CPU, updates then
            take a half to two thirds of the time. Other random numbers are drawn, and a resumed
            run is not equal to an uninterrupted one. A training drops the compiled code of earlier
            ones in its process (``torch.compiler.reset``).

    Raises:
        TypeError: for a value of another type; the message names the field.
        ValueError: for a value out of its range.
    """

    lr: float = 5e-4
    epochs: int = 5
    num_minibatches: int = 8
    clip_epsilon: ClipEpsilon = 0.2
    optimism: Scheduled = 0.0
    clip_value: float = 0.2
    entropy_coeff: float = 0.01
    critic_coeff: float = 1.0
    huber_delta: float = 10.0
    gamma: float = 0.99
    gae_lambda: float = 0.95
    max_grad_norm: float = 10.0
    adam_eps: float = 1e-5
    input_norm: bool = False
    distribution: ContinuousDistribution = "normal"
    compile: bool = False

    memory_dim = 0  # a field of ActorConfig

    def __post_init__(self) -> None:
        check_fields(self, RANGES)

    def clip_epsilon_at(self, progress: float) -> float | tuple[float, float]:
        """The clipping range at the fraction ``progress`` of training."""
        if isinstance(self.clip_epsilon, float | int):
            return self.clip_epsilon
        low, high = self.clip_epsilon
        return as_schedule(low)(progress), as_schedule(high)(progress)


@dataclass(kw_only=True)
class ActorConfig(ClippedUpdateConfig):
    """Hyperparameters of decentralized actors and their PPO update.

    Args:
        share_params: one actor network for all agents, or one per agent.
        actor_hidden: widths of the actors' hidden layers.
        memory_dim: width of the actors' GRU; 0 for none.
        sequence_length: steps of backpropagation through time, from the memory at collection.
    """

    share_params: bool = False
    actor_hidden: tuple[int, ...] = (64,)
    memory_dim: int = 0
    sequence_length: int = 10

    def actors(self, groups: Sequence[AgentGroup], env: EnvBase) -> list[TensorDictModule]:
        """Build actors of these groups on the environment's device."""
        return [actor_module(group, **self.actor_kwargs).to(env.device) for group in groups]

    @property
    def actor_kwargs(self) -> dict[str, Any]:
        """Options of the actors' networks."""
        return {
            "hidden": self.actor_hidden,
            "share_params": self.share_params,
            "input_norm": self.input_norm,
            "memory_dim": self.memory_dim,
        }


@dataclass(kw_only=True)
class PPOConfig(ActorConfig):
    """Hyperparameters of PPO with a critic network.

    Args:
        critic_hidden: widths of the critic's hidden layers.
    """

    critic_hidden: tuple[int, ...] = (64, 64)

    @property
    def critic_kwargs(self) -> dict[str, Any]:
        """Options of the critic's network."""
        return {"hidden": self.critic_hidden, "input_norm": self.input_norm}
