"""Hyperparameters of MAVEN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchrl_agentmixer._fields import check_fields
from torchrl_agentmixer.algorithms.ranges import RANGES
from torchrl_agentmixer.schedules import Schedule, Scheduled, as_schedule

_EPSILON = Schedule(0.3, 0.05, until=0.5)


@dataclass(kw_only=True)
class MAVENConfig:
    """Hyperparameters of MAVEN (`arXiv 1910.07483 <https://arxiv.org/abs/1910.07483>`_).

    Args:
        lr: learning rate of utilities, mixer and discriminator.
        lr_latent: learning rate of the hierarchical policy.
        epochs: passes over as many transitions as a batch has; and gradient steps of the
            hierarchical policy on the episodes that ended in the batch.
        num_minibatches: a minibatch from the replay buffer has a batch's frames over this number;
            ``epochs * num_minibatches`` gradient steps follow each batch.
        num_latents: values of the latent.
        epsilon: probability of an exploring action in collection: a number or a
            :class:`~torchrl_agentmixer.schedules.Schedule`.
        information_coeff: weight of the mutual-information bonus.
        temperature: of the Boltzmann policies that the discriminator reads, in units of utility.
        latent_entropy_coeff: weight of the hierarchical policy's entropy bonus.
        clip_epsilon: clipping range of the hierarchical policy's ratio.
        replay_size: transitions in the replay buffer, which is on the environment's device.
        target_rate: in (0, 1]; step of the target networks toward the trained ones.
        gamma: discount factor.
        max_grad_norm: bound on the norm of the gradient.
        adam_eps: epsilon of Adam.
        share_params: one utility network for all agents, or one per agent.
        actor_hidden: widths of the utilities' hidden layers.
        mixer_dim: width of the mixer.
        discriminator_hidden: widths of the discriminator's hidden layers.
        latent_hidden: widths of the hierarchical policy's hidden layers.
        input_norm: LayerNorm on the inputs of utilities, discriminator and hierarchical policy.

    Raises:
        TypeError: for a value of another type; the message names the field.
        ValueError: for a value out of its range.
    """

    lr: float = 1e-3
    lr_latent: float = 5e-3
    epochs: int = 5
    num_minibatches: int = 40
    num_latents: int = 8
    epsilon: Scheduled = _EPSILON
    information_coeff: float = 1e-3
    temperature: float = 1.0
    latent_entropy_coeff: float = 0.01
    clip_epsilon: float = 0.2
    replay_size: int = 50_000
    target_rate: float = 0.01
    gamma: float = 0.99
    max_grad_norm: float = 10.0
    adam_eps: float = 1e-5
    share_params: bool = False
    actor_hidden: tuple[int, ...] = (64,)
    mixer_dim: int = 32
    discriminator_hidden: tuple[int, ...] = (64,)
    latent_hidden: tuple[int, ...] = (64,)
    input_norm: bool = False

    def __post_init__(self) -> None:
        check_fields(self, RANGES)
        if isinstance(self.epsilon, Mapping):
            self.epsilon = as_schedule(self.epsilon)
