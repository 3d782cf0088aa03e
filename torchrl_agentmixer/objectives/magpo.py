"""Loss of guider and learners in MAGPO."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torch.distributions import Distribution, kl_divergence

from torchrl_agentmixer.objectives.huber_ppo import HuberPPOLoss


class MAGPOLoss(HuberPPOLoss):
    r"""PPO loss of a guider that is held near its learners, and imitation loss of the learners.

    MAGPO (`arXiv 2507.18059 <https://arxiv.org/abs/2507.18059>`_), with one ratio per agent. The
    guider :math:`\mu` collected the actions as :math:`\mu_{old}`. With :math:`r = \mu / \mu_{old}`,
    :math:`c = \operatorname{clip}(\mu / \pi, 1 / \delta, \delta)` and the learner :math:`\pi`
    constant, it minimizes

    .. math:: -\mathbb E\left[\min\left(r \hat A,\,
              \operatorname{clip}(c\, \pi / \mu_{old}, 1 \pm \epsilon)\, \hat A\right)\right]
              + \mathbb E\left[1_{\mu / \pi \notin [1 / \delta, \delta]}\, KL(\mu \| \pi)\right]

    plus entropy bonus and value loss. The *double clip* :math:`c` ends the gain where the guider
    departs from the learner by more than :math:`\delta`; there the divergence pulls it back. With
    the guider constant, the learner minimizes

    .. math:: \mathbb E\left[KL(\mu \| \pi)\right] - \alpha\, \mathbb E\left[
              \min\left(\frac{\pi}{\mu_{old}} \hat A,\,
              \operatorname{clip}(\tfrac{\pi}{\mu_{old}}, 1 \pm \epsilon)\, \hat A\right)\right].

    Means are over samples and agents.

    Layout, keys and :meth:`set_keys` are those of :class:`HuberPPOLoss`, with a log-probability per
    agent, ``[*B, n]``, and advantages ``[*B, n, 1]`` or, for the team, ``[*B, 1]``. Writes, as
    scalars, the guider's ``"loss_objective"``, ``"loss_guider_kl"``, ``"loss_entropy"`` and
    ``"loss_critic"``, the learners' ``"loss_imitation"`` and ``"loss_learner"``, and metrics, of
    which ``"guider_clip_fraction"`` is the share of actions with :math:`\mu / \pi \notin
    [1 / \delta, \delta]`.

    Args:
        guider (TensorDictModuleBase): joint policy with a distribution of batch ``[*B, n]``, such
            as an autoregressive one, by ``get_dist_params`` and ``build_dist_from_params``.
        critic (TensorDictModuleBase): writes the value.
        learners (ProbabilisticTensorDictSequential): the decentralized policies (``joint=False``).

    Keyword Args:
        guider_clip (float): :math:`\delta` > 1.
        learner_coeff (float): :math:`\alpha`.
        **kwargs: options of :class:`HuberPPOLoss`.

    Raises:
        ValueError: for a ``guider_clip`` that is not above 1.

    Examples:
        >>> from torchrl_agentmixer.algorithms import MAGPO
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/predator_prey", num_envs=8)
        >>> algorithm = MAGPO(env, total_frames=1000)
        >>> batch = algorithm.advantage(env.rollout(3, algorithm.policy).detach())
        >>> sorted(key for key in algorithm.loss(batch).keys() if key.startswith("loss_"))[:3]
        ['loss_critic', 'loss_entropy', 'loss_guider_kl']
    """

    def __init__(
        self,
        guider: Any,
        critic: Any,
        learners: ProbabilisticTensorDictSequential,
        *,
        guider_clip: float = 1.5,
        learner_coeff: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if guider_clip <= 1:
            raise ValueError(f"MAGPOLoss: expected `guider_clip` > 1, got {guider_clip}.")
        super().__init__(guider, critic, **(kwargs | {"functional": False}))
        self.learners = learners
        self.log_guider_clip = math.log(guider_clip)
        self.learner_coeff = learner_coeff

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys of :class:`HuberPPOLoss` and of the learners' inputs."""
        return list(dict.fromkeys([*super().in_keys, *self.learners.in_keys]))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict, keys = tensordict.copy(), self.tensor_keys
        action, old = tensordict[keys.action], tensordict[keys.sample_log_prob]  # old: [*B, n]
        advantage = self._maybe_normalize_advantage(
            tensordict[keys.advantage], tensordict, update_norm=False
        )
        advantage = advantage.squeeze(-1)  # [*B, n], or [*B] per team
        if advantage.ndim < old.ndim:
            advantage = advantage.unsqueeze(-1)
        guider, fixed_guider = _with_constant(self.actor_network, tensordict)
        learner, fixed_learner = _with_constant(self.learners, tensordict)
        log_guider, log_learner = guider.log_prob(action), learner.log_prob(action)  # [*B, n]

        fixed_log_learner = log_learner.detach()
        gap = log_guider - fixed_log_learner
        held = gap.clamp(-self.log_guider_clip, self.log_guider_clip)
        outside = (held != gap).to(gap)
        log_ratio = log_guider - old
        clipped = (held + fixed_log_learner - old).clamp(*self._clip_bounds)
        log_learner_ratio = log_learner - old
        learner_clipped = log_learner_ratio.clamp(*self._clip_bounds)

        entropy = guider.entropy()
        loss_critic, _, explained_variance = self.loss_critic(tensordict)
        out = {
            "loss_objective": -_smaller_gain(log_ratio, clipped, advantage),
            "loss_guider_kl": outside * kl_divergence(guider, fixed_learner),
            "loss_entropy": -self.entropy_coeff * entropy,
            "loss_critic": loss_critic,
            "loss_imitation": kl_divergence(fixed_guider, learner),
            "loss_learner": -self.learner_coeff
            * _smaller_gain(log_learner_ratio, learner_clipped, advantage),
        }
        metrics = {
            "entropy": entropy,
            "kl_approx": -log_ratio,
            "clip_fraction": (log_ratio.clamp(*self._clip_bounds) != log_ratio).to(gap),
            "guider_clip_fraction": outside,
            "mean_ratio": log_ratio.exp(),
            "explained_variance": explained_variance,
        }
        out |= {name: value.detach() for name, value in metrics.items()}
        return TensorDict({name: value.mean() for name, value in out.items()})


def _with_constant(policy: Any, tensordict: TensorDictBase) -> tuple[Distribution, Distribution]:
    """A policy's distribution, and the same one without gradients."""
    params = policy.get_dist_params(tensordict.copy())
    return policy.build_dist_from_params(params), policy.build_dist_from_params(params.detach())


def _smaller_gain(
    log_ratio: torch.Tensor, clipped: torch.Tensor, advantage: torch.Tensor
) -> torch.Tensor:
    """PPO's pessimistic gain, ``[*B, n]``."""
    return torch.min(log_ratio.exp() * advantage, clipped.exp() * advantage)
