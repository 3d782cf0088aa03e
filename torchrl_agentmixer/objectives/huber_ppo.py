"""PPO loss of MAPPO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.objectives.multiagent import MAPPOLoss

from torchrl_agentmixer._choices import check_values
from torchrl_agentmixer.objectives._entropy import AnalyticEntropy


class HuberPPOLoss(AnalyticEntropy, MAPPOLoss):
    r"""TorchRL's ``MAPPOLoss`` with a Huber value loss of any threshold, and optimism.

    The value loss of MAPPO (`arXiv 2103.01955 <https://arxiv.org/abs/2103.01955>`_) is quadratic up
    to an error of ``huber_delta`` and linear beyond. TorchRL's ``smooth_l1`` has the threshold 1,
    so prediction and target are divided by ``huber_delta``, and the loss is multiplied by its
    square.

    Layout, keys and :meth:`set_keys` are those of ``MAPPOLoss``. Advantages
    ``[*B, n_agents, 1]`` give one ratio per agent. Advantages ``[*B, 1]`` give one ratio per team;
    pass ``normalize_advantage_exclude_dims=()`` then.

    Args:
        *args: actor and critic, as in ``MAPPOLoss``.

    Keyword Args:
        huber_delta (float): threshold, in normalized units; 10 in MAPPO.
        clip_value (float): value clipping range, in normalized units.
        critic_coeff (float): weight of the value loss.
        standardize (callable, optional): replaces TorchRL's standardization of the advantage, as
            ``standardize(advantage, exclude_dims=...)``, such as over several processes.
        optimism (float): in [0, 1], see :func:`optimistic`. It is a buffer: change it in place.
        **kwargs: options of ``MAPPOLoss``.

    Raises:
        ValueError: for a ``huber_delta`` that is not positive, or an ``optimism`` out of [0, 1].

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

    clip_value: float

    def __init__(
        self,
        *args: Any,
        huber_delta: float = 10.0,
        clip_value: float = 0.2,
        critic_coeff: float = 1.0,
        standardize: Callable[..., torch.Tensor] | None = None,
        optimism: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_values(
            "HuberPPOLoss",
            huber_delta=(huber_delta, huber_delta > 0, "> 0"),
            optimism=(optimism, 0 <= optimism <= 1, "in [0, 1]"),
        )
        super().__init__(
            *args,
            clip_value=clip_value / huber_delta,
            critic_coeff=critic_coeff * huber_delta**2,
            loss_critic_type="smooth_l1",
            **kwargs,
        )
        # A number, not a buffer: TorchRL branches on it, which would read a tensor at every step.
        del self.clip_value
        self.clip_value = clip_value / huber_delta
        self.huber_delta = huber_delta
        self.standardize = standardize
        self.optimism: torch.Tensor
        self.register_buffer("optimism", torch.tensor(float(optimism)), persistent=False)

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
        if self.standardize is None:
            return super()._standardize_advantage(advantage, tensordict)
        return self.standardize(advantage, exclude_dims=self.normalize_advantage_exclude_dims)

    def _maybe_normalize_advantage(
        self, advantage: torch.Tensor, tensordict: TensorDictBase, **kwargs: Any
    ) -> torch.Tensor:
        advantage = super()._maybe_normalize_advantage(advantage, tensordict, **kwargs)
        return optimistic(advantage, self.optimism)


def optimistic(advantage: torch.Tensor, optimism: torch.Tensor | float) -> torch.Tensor:
    """Multiply negative advantages by ``1 - optimism``.

    Optimistic policy gradient (OptiMAPPO, `arXiv 2311.01953 <https://arxiv.org/abs/2311.01953>`_),
    whose leak is ``1 - optimism``: an agent learns less from failures, which may be due to partners
    that still explore.

    Args:
        advantage (Tensor): standardized advantages.
        optimism (float or Tensor): in [0, 1]; 0 changes nothing.

    Examples:
        >>> optimistic(torch.tensor([-2.0, 1.0]), 0.75)
        tensor([-0.5000,  1.0000])
    """
    return torch.where(advantage < 0, advantage * (1 - optimism), advantage)
