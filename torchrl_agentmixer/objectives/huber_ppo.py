"""The PPO loss of MAPPO, and the normalizer of its value targets."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.modules import PopArtValueNorm
from torchrl.objectives.multiagent import MAPPOLoss

from torchrl_agentmixer import distributed


class HuberPPOLoss(MAPPOLoss):
    r"""TorchRL's ``MAPPOLoss`` with MAPPO's Huber value loss, whose threshold is not 1.

    The value loss of MAPPO (`arXiv 2103.01955 <https://arxiv.org/abs/2103.01955>`_) is quadratic up
    to an error of ``huber_delta`` and linear beyond. TorchRL's ``smooth_l1`` has its corner at 1:
    with prediction and target divided by ``huber_delta`` on the way in, and the loss multiplied by
    its square on the way out, the corner is at ``huber_delta``, and value clipping stays in
    normalized units. Under ``torchrun`` advantages are standardized over the batches of all ranks.

    Layout, keys and :meth:`set_keys` are those of ``MAPPOLoss``; so is everything else. It takes a
    ratio for each agent, with an advantage ``[*B, n_agents, 1]``, and one for the team, with
    ``[*B, 1]``; for the latter pass ``normalize_advantage_exclude_dims=()``.

    Args:
        *args: as ``MAPPOLoss``: the actor and the critic.

    Keyword Args:
        huber_delta (float): the threshold, in normalized units; MAPPO's is 10.
        clip_value (float): value clipping range, in normalized units.
        critic_coeff (float): weight of the value loss.
        **kwargs: as ``MAPPOLoss``.

    Raises:
        ValueError: for a ``huber_delta`` that is not positive.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_agentmixer import AgentMixerPolicy
        >>> from torchrl_agentmixer.envs import make_env
        >>> from torchrl_agentmixer.modules import CentralCritic, value_module
        >>> env = make_env("grid/predator_prey", num_envs=8)
        >>> policy = AgentMixerPolicy.from_env(env)
        >>> critic = value_module(CentralCritic(env.observation_spec["state"].shape[-1]))
        >>> loss = HuberPPOLoss(
        ...     policy,
        ...     critic,
        ...     huber_delta=10.0,
        ...     clip_value=0.2,
        ...     normalize_advantage_exclude_dims=(),
        ... )
        >>> loss.set_keys(action=("agents", "action"))
        >>> rollout = env.rollout(3, policy, break_when_any_done=False)
        >>> data = critic(rollout.reshape(-1)).detach()
        >>> data["advantage"], data["value_target"] = torch.randn(24, 1), torch.randn(24, 1)
        >>> sorted(key for key in loss(data).keys() if key.startswith("loss"))
        ['loss_critic', 'loss_entropy', 'loss_objective']
    """

    def __init__(
        self,
        *args: Any,
        huber_delta: float = 10.0,
        clip_value: float = 0.2,
        critic_coeff: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if huber_delta <= 0:
            raise ValueError(f"HuberPPOLoss: expected `huber_delta` > 0, got {huber_delta}.")
        super().__init__(
            *args,
            clip_value=clip_value / huber_delta,
            critic_coeff=critic_coeff * huber_delta**2,
            loss_critic_type="smooth_l1",
            **kwargs,
        )
        self.huber_delta = huber_delta

    def _critic_loss_inputs(
        self,
        target_return: torch.Tensor,
        state_value: torch.Tensor,
        old_state_value: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        inputs = super()._critic_loss_inputs(target_return, state_value, old_state_value)
        target, value, old = inputs
        delta = self.huber_delta
        return target / delta, value / delta, None if old is None else old / delta

    def _standardize_advantage(
        self, advantage: torch.Tensor, tensordict: TensorDictBase
    ) -> torch.Tensor:
        if distributed.world_size() == 1:
            return super()._standardize_advantage(advantage, tensordict)
        return distributed.standardized(
            advantage, exclude_dims=self.normalize_advantage_exclude_dims
        )


class DistributedValueNorm(PopArtValueNorm):
    """TorchRL's ``PopArtValueNorm`` on the value targets of all ranks.

    Moments are linear in the batch: the means over ranks are those of the joined batch.

    Args:
        **kwargs: as ``PopArtValueNorm``.

    Examples:
        >>> norm = DistributedValueNorm(shape=1)
        >>> norm.update(torch.tensor([[1.0], [3.0]]))
        >>> round(norm.normalize(torch.tensor([3.0])).item(), 3)
        1.0
    """

    @torch.no_grad()
    def update(self, value_target: torch.Tensor) -> None:
        """Fold value targets ``[*B, 1]`` in."""
        super().update(value_target)
        distributed.average_([self.running_mean, self.running_mean_sq])
