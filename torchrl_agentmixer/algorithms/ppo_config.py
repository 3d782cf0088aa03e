"""Hyperparameters of the PPO methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase

from torchrl_agentmixer._fields import check_fields
from torchrl_agentmixer.algorithms.ranges import RANGES
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.policies import actor_module
from torchrl_agentmixer.policies.product import ContinuousDistribution
from torchrl_agentmixer.schedules import Schedule, Scheduled, as_schedule

ClipEpsilon = float | tuple[Scheduled, Scheduled]


@dataclass(kw_only=True)
class ClippedUpdateConfig:
    """Hyperparameters of PPO's update (AgentMixer's appendix; MAPPO).

    Args:
        lr: learning rate.
        epochs: passes over each batch.
        num_minibatches: minibatches of one pass.
        clip_epsilon: clipping range of the ratio: a number, or one below and one above 1. A wider
            range above ("clip-higher" of DAPO, `arXiv 2503.14476
            <https://arxiv.org/abs/2503.14476>`_) keeps rare large advantages from being cut off
            after one step, as they are by symmetric clipping. Both may be a
            :class:`~torchrl_agentmixer.schedules.Schedule`.
        clip_value: clipping range of the value, in normalized units.
        entropy_coeff: weight of the entropy bonus.
        critic_coeff: weight of the value loss.
        huber_delta: threshold of the Huber value loss, in normalized units.
        gamma: discount factor.
        gae_lambda: lambda of GAE.
        max_grad_norm: bound on the norm of the gradient of all parameters.
        adam_eps: epsilon of Adam.
        input_norm: LayerNorm on the networks' inputs, as the authors have it.
        distribution: of continuous actions, ``"normal"`` or ``"tanh_normal"``.

    Raises:
        TypeError: for a value of another type; the message names the field.
        ValueError: for a value out of its range.
    """

    lr: float = 5e-4
    epochs: int = 5
    num_minibatches: int = 8
    clip_epsilon: ClipEpsilon = 0.2
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

    memory_dim = 0  # not a field here: only some methods have actors with memory

    def __post_init__(self) -> None:
        check_fields(self, RANGES)
        if isinstance(self.clip_epsilon, tuple):
            low, high = self.clip_epsilon
            self.clip_epsilon = (_schedule_or_number(low), _schedule_or_number(high))

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
        sequence_length: steps over which an actor with memory is unrolled in training, from the
            memory at collection.
    """

    share_params: bool = False
    actor_hidden: tuple[int, ...] = (64,)
    memory_dim: int = 0
    sequence_length: int = 10

    def actors(self, groups: Sequence[AgentGroup], env: EnvBase) -> list[TensorDictModule]:
        """Actors of these groups, on the environment's device."""
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
    """Hyperparameters that most PPO methods share.

    Args:
        critic_hidden: widths of the critic's hidden layers.
    """

    critic_hidden: tuple[int, ...] = (64, 64)

    @property
    def critic_kwargs(self) -> dict[str, Any]:
        """Options of the critic's network."""
        return {"hidden": self.critic_hidden, "input_norm": self.input_norm}


def _schedule_or_number(value: Scheduled) -> float | Schedule:
    return as_schedule(value) if isinstance(value, Mapping) else value
