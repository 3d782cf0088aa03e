"""Hyperparameters of MAVEN."""

from __future__ import annotations

from dataclasses import dataclass

from torchrl_agentmixer.algorithms.off_policy_config import OffPolicyConfig
from torchrl_agentmixer.schedules import Schedule, Scheduled

_EPSILON = Schedule(0.3, 0.05, until=0.5)


@dataclass(kw_only=True)
class MAVENConfig(OffPolicyConfig):
    """Hyperparameters of MAVEN (`arXiv 1910.07483 <https://arxiv.org/abs/1910.07483>`_).

    ``lr`` is the learning rate of utilities, mixer and discriminator.

    Args:
        lr_latent: learning rate of the hierarchical policy.
        epochs: ``epochs * num_minibatches`` gradient steps on replay per batch, and ``epochs``
            steps of the hierarchical policy on the episodes that ended in the batch.
        num_minibatches: frames of a batch divided by the size of a minibatch.
        num_latents: number of values of the latent.
        epsilon: epsilon of the epsilon-greedy policy: a number or a
            :class:`~torchrl_agentmixer.schedules.Schedule`.
        information_coeff: weight of the mutual-information bonus.
        temperature: temperature of the discriminator's Boltzmann policies, in units of utility.
        latent_entropy_coeff: weight of the hierarchical policy's entropy bonus.
        clip_epsilon: clipping range of the hierarchical policy's ratio.
        max_grad_norm: bound on the norm of the gradient.
        adam_eps: epsilon of Adam.
        mixer_dim: width of the mixer.
        discriminator_hidden: widths of the discriminator's hidden layers.
        latent_hidden: widths of the hierarchical policy's hidden layers.
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
    max_grad_norm: float = 10.0
    adam_eps: float = 1e-5
    mixer_dim: int = 32
    discriminator_hidden: tuple[int, ...] = (64,)
    latent_hidden: tuple[int, ...] = (64,)
