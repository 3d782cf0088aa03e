"""Actor loss of HAPPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torchrl.objectives import ClipPPOLoss

from torchrl_agentmixer.objectives._entropy import AnalyticEntropy


class HAPPOLoss(AnalyticEntropy, ClipPPOLoss):
    r"""TorchRL's ``ClipPPOLoss`` of one agent, with the advantage times HAPPO's factor.

    HAPPO (`arXiv 2109.11251 <https://arxiv.org/abs/2109.11251>`_) updates the agents in sequence.
    With the agent's ratio :math:`r_{i_m}` of new to old probability, it minimizes

    .. math:: -\mathbb E\left[\min\left(r_{i_m} M_{i_m},\,
              \operatorname{clip}(r_{i_m}, 1 \pm \epsilon)\, M_{i_m}\right)\right], \qquad
              M_{i_m} = \hat A \prod_{l<m} r_{i_l}.

    Layout and keys are those of ``ClipPPOLoss`` without a critic, and ``"factor"`` ``[*B, 1]``, the
    product of the ratios of earlier agents. Advantages are not normalized.

    Args:
        actor (ProbabilisticTensorDictSequential): the policy of this agent.

    Keyword Args:
        **kwargs: options of ``ClipPPOLoss``.

    Examples:
        >>> from torchrl_agentmixer.groups import AgentGroup
        >>> from torchrl_agentmixer.policies import actor_module, product_policy
        >>> from tensordict import TensorDict
        >>> group = AgentGroup("agents", n_agents=1, observation_dim=4, action_dim=3, discrete=True)
        >>> policy = product_policy([group], [actor_module(group)], joint=False)
        >>> data = TensorDict({"agents": {"observation": torch.randn(5, 1, 4)}}, [5])
        >>> data = policy(data).detach()
        >>> loss = HAPPOLoss(policy)
        >>> loss.set_keys(
        ...     action=("agents", "action"), sample_log_prob=("agents", "action_log_prob")
        ... )
        >>> data["advantage"], data["factor"] = torch.ones(5, 1), torch.full((5, 1), 2.0)
        >>> round(loss(data)["loss_objective"].item(), 4), loss.ratio(data).shape
        (-2.0, torch.Size([5, 1]))
    """

    @dataclass
    class _AcceptedKeys(ClipPPOLoss._AcceptedKeys):
        """Keys of ``ClipPPOLoss``, and of the factor."""

        factor: NestedKey = "factor"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(self, actor: Any, **kwargs: Any) -> None:
        super().__init__(actor, None, functional=False, normalize_advantage=False, **kwargs)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        keys = self.tensor_keys
        weighted = tensordict.get(keys.factor) * tensordict.get(keys.advantage)
        return super().forward(tensordict.copy().set(keys.advantage, weighted))

    @torch.no_grad()
    def ratio(self, tensordict: TensorDictBase) -> torch.Tensor:
        """New over old probability of the stored actions, ``[*B, 1]``."""
        dist = self.actor_network.get_dist(tensordict.copy())
        log_prob = dist.log_prob(tensordict.get(self.tensor_keys.action))
        return (log_prob - tensordict.get(self.tensor_keys.sample_log_prob)).exp()
