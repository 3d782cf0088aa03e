"""Losses of MAVEN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torch.distributions import Categorical
from torch.nn.functional import cross_entropy, one_hot
from torchrl.modules import QValueModule
from torchrl.objectives import QMixerLoss, ValueEstimators

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.objectives._stateful import StatefulLoss
from torchrl_agentmixer.policies.latent import masked


class MAVENLoss(StatefulLoss):
    r"""MAVEN's losses of utilities, mixer and discriminator: QMIX with a mutual-information bonus.

    MAVEN (`arXiv 1910.07483 <https://arxiv.org/abs/1910.07483>`_) adds
    :math:`\log q(z \mid s, \sigma)` with a discriminator :math:`q`, where :math:`\sigma` are the
    agents' Boltzmann policies ``softmax(Q_i / temperature)`` given the latent ``z``.

    Reads transitions ``[N]``: observations, action masks, ``"state"`` ``[N, s]``, ``"latent"``
    ``[N, 1]``, actions, and ``"next"`` with reward and done flags. Writes scalars: ``"loss_td"``
    (TorchRL's ``QMixerLoss``), ``"loss_discriminator"`` (mean :math:`-\log q`), and
    ``"information"``, the entropy of the latents minus that loss in nats: a lower bound of the
    mutual information of behavior and z.

    Args:
        utilities (TensorDictModule): writes ``(group, "action_value")`` ``[N, n, K]``.
        mixer (TensorDictModule): QMIX's mixer, writes ``"chosen_action_value"`` ``[N, 1]``.
        discriminator (nn.Module): maps state and behavior ``[N, s + n * K]`` to logits ``[N, m]``.
        group (AgentGroup): the agents.

    Keyword Args:
        num_latents (int): number of values of the latent, m.
        gamma (float): discount factor.
        temperature (float): temperature of the Boltzmann policies, in units of utility.

    Examples:
        >>> from torchrl_agentmixer.algorithms import MAVEN
        >>> from torchrl_agentmixer.envs import make_env, with_memory
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = MAVEN(env, total_frames=160)
        >>> data = with_memory(env, algorithm.policy).rollout(1, algorithm.policy).reshape(-1)
        >>> sorted(algorithm.loss(data).keys())
        ['information', 'loss_discriminator', 'loss_td']
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of the state and the latent."""

        state: NestedKey = "state"
        latent: NestedKey = "latent"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(
        self,
        utilities: TensorDictModule,
        mixer: TensorDictModule,
        discriminator: nn.Module,
        group: AgentGroup,
        *,
        num_latents: int,
        gamma: float = 0.99,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.utilities, self.discriminator, self.group = utilities, discriminator, group
        self.num_latents, self.temperature = num_latents, temperature
        self._mask_key = group.key("action_mask") if group.masked else None
        self.td = self._qmix(utilities, mixer, gamma)
        self.out_keys = ["loss_td", "loss_discriminator", "information"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        loss_td = self.td(tensordict)["loss"]
        loss, information = self.information(self.utilities(tensordict.copy()))
        return TensorDict(
            {"loss_td": loss_td, "loss_discriminator": loss, "information": information}
        )

    def information(self, tensordict: TensorDictBase) -> tuple[torch.Tensor, torch.Tensor]:
        """The discriminator's loss and the mutual information, for utilities in ``tensordict``."""
        latent = tensordict.get(self.tensor_keys.latent).squeeze(-1)
        utilities = tensordict.get(self.group.key("action_value"))
        utilities = masked(utilities, tensordict, self._mask_key)
        behavior = (utilities / self.temperature).softmax(-1).flatten(-2)  # [N, n * K]
        state = tensordict.get(self.tensor_keys.state)
        loss = cross_entropy(self.discriminator(torch.cat([state, behavior], -1)), latent)
        share = one_hot(latent, self.num_latents).to(loss.dtype).mean(0)
        return loss, Categorical(probs=share).entropy() - loss.detach()

    def _qmix(self, utilities: TensorDictModule, mixer: TensorDictModule, gamma: float) -> Any:
        """TorchRL's QMIX loss, with the maximum over allowed actions."""
        key = self.group.key
        greedy = QValueModule(
            action_space="categorical",
            action_value_key=key("action_value"),
            action_mask_key=self._mask_key,
            out_keys=[key("action"), key("action_value"), key("chosen_action_value")],
        )
        loss = QMixerLoss(
            TensorDictSequential(utilities, greedy),
            mixer,
            delay_value=True,
            action_space="categorical",
        )
        loss.set_keys(
            action=key("action"),
            action_value=key("action_value"),
            local_value=key("chosen_action_value"),
        )
        loss.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
        return loss


class LatentPolicyLoss(StatefulLoss):
    r"""PPO loss of MAVEN's hierarchical policy :math:`p(z \mid s_0)`.

    Reads ended episodes ``[E]``: the initial ``"state"`` ``[E, s]``, ``"latent"`` ``[E, 1]``,
    ``"latent_log_prob"`` ``[E]`` and ``"advantage"`` ``[E]``. Writes scalars: ``"loss_latent"``,
    ``"loss_entropy"`` and ``"latent_entropy"`` (nats). Each is a sum over episodes divided by
    ``count``.

    Args:
        logits (TensorDictModuleBase or nn.Module): maps the state to logits ``[E, m]``.

    Keyword Args:
        clip_epsilon (float): clipping range of the ratio.
        entropy_coeff (float): weight of the entropy bonus.

    Examples:
        >>> logits = nn.Linear(3, 2)
        >>> loss = LatentPolicyLoss(logits)
        >>> episodes = TensorDict(
        ...     {
        ...         "state": torch.zeros(5, 3),
        ...         "latent": torch.zeros(5, 1, dtype=torch.int64),
        ...         "latent_log_prob": logits(torch.zeros(5, 3)).log_softmax(-1)[:, 0].detach(),
        ...         "advantage": torch.ones(5),
        ...     },
        ...     [5],
        ... )
        >>> round(loss(episodes)["loss_latent"].item(), 4)
        -1.0
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of the episodes' entries."""

        state: NestedKey = "state"
        latent: NestedKey = "latent"
        log_prob: NestedKey = "latent_log_prob"
        advantage: NestedKey = "advantage"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(
        self,
        logits: TensorDictModuleBase | nn.Module,
        *,
        clip_epsilon: float = 0.2,
        entropy_coeff: float = 0.01,
    ) -> None:
        super().__init__()
        self.logits = logits
        self.clip_epsilon, self.entropy_coeff = clip_epsilon, entropy_coeff
        self.out_keys = ["loss_latent", "loss_entropy", "latent_entropy"]

    def dist(self, tensordict: TensorDictBase) -> Categorical:
        """The hierarchical policy at the states of ``tensordict``."""
        return Categorical(logits=self.logits(tensordict.get(self.tensor_keys.state)))

    def forward(self, tensordict: TensorDictBase, count: float | None = None) -> TensorDictBase:
        """Compute the losses.

        Args:
            tensordict (TensorDictBase): ended episodes ``[E]``.
            count (float, optional): divisor of the sums; ``E`` by default.
        """
        count = len(tensordict) if count is None else count
        keys, clip, dist = self.tensor_keys, self.clip_epsilon, self.dist(tensordict)
        advantage = tensordict.get(keys.advantage)
        log_prob = dist.log_prob(tensordict.get(keys.latent).squeeze(-1))
        ratio = (log_prob - tensordict.get(keys.log_prob)).exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        loss = -torch.min(ratio * advantage, clipped * advantage).sum() / count
        entropy = dist.entropy().sum() / count
        return TensorDict(
            {
                "loss_latent": loss,
                "loss_entropy": -self.entropy_coeff * entropy,
                "latent_entropy": entropy.detach(),
            }
        )
