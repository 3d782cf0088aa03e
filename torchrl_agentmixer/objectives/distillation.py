"""Loss of the students and advantage of the expert in AIL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch.distributions import kl_divergence
from torchrl.objectives.value.functional import generalized_advantage_estimate

from torchrl_agentmixer.objectives._stateful import StatefulLoss
from torchrl_agentmixer.policies.behavior_mixture import EXPERT_LOG_PROB_KEY
from torchrl_agentmixer.policies.product import LOG_PROB_KEY


class DistillationLoss(StatefulLoss):
    r"""Distillation loss :math:`KL(\pi_\theta \| \pi_\phi)` from an expert to its students.

    Eq. 6 of AgentMixer (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_). The divergence is
    exact, per team, in nats. The expert is detached.

    Reads the inputs of both policies, ``[*B]``; writes ``"loss_distillation"``, the batch's mean.

    Args:
        expert (ProbabilisticTensorDictSequential): joint policy on the state.
        students (ProbabilisticTensorDictSequential): joint policy on the observations.

    Examples:
        >>> from torchrl_agentmixer.algorithms import AIL
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=4, seed=0)
        >>> policy = AIL(env, total_frames=100).policy
        >>> loss = DistillationLoss(policy.expert, policy.students)
        >>> loss(env.reset())["loss_distillation"].shape
        torch.Size([])
    """

    @dataclass
    class _AcceptedKeys:
        """No configurable keys."""

    def __init__(
        self,
        expert: ProbabilisticTensorDictSequential,
        students: ProbabilisticTensorDictSequential,
    ) -> None:
        super().__init__()
        self.expert, self.students = expert, students
        self.in_keys = list(dict.fromkeys([*expert.in_keys, *students.in_keys]))
        self.out_keys = ["loss_distillation"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return TensorDict({"loss_distillation": self.divergence(tensordict).mean()})

    def divergence(self, tensordict: TensorDictBase) -> torch.Tensor:
        """KL divergence per state, ``[*B]``."""
        with torch.no_grad():
            expert = self.expert.get_dist(tensordict.copy())
        return kl_divergence(expert, self.students.get_dist(tensordict.copy()))


class ExpertAdvantage(TensorDictModuleBase):
    r"""Off-policy GAE of an expert on steps of a mixture with its students.

    Every step has the importance weight :math:`\rho = \min(1, \pi_\theta(a|s) / \pi_\beta(a|s))`,
    with the exact joint probability of the mixture. It weights the advantage and the traces of GAE
    and of the value targets, as in V-trace (`arXiv 1802.01561
    <https://arxiv.org/abs/1802.01561>`_) with lambda:

    .. math:: A_t = \delta_t + \gamma \lambda \rho_{t+1} A_{t+1}, \qquad
              v_t = V(s_t) + \rho_t A_t.

    Reads rewards, done flags, states, ``"action_log_prob"`` and ``"expert_log_prob"`` of
    trajectories ``[*B, T]``; writes ``"expert_weight"`` :math:`\rho`, ``"state_value"``,
    ``"value_target"`` and ``"advantage"``, standardized over the batch and times :math:`\rho`, all
    ``[*B, T, 1]``.

    Args:
        critic (TensorDictModuleBase): maps the state to ``"state_value"``.
        gamma (float): discount factor.
        lmbda (float): lambda of GAE.
        standardize (callable): maps advantages to mean 0 and standard deviation 1.

    Examples:
        >>> from torchrl_agentmixer.algorithms import AIL
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=4, seed=0)
        >>> algorithm = AIL(env, total_frames=100)
        >>> data = env.rollout(5, algorithm.policy).detach()
        >>> algorithm.advantage(data)["advantage"].shape
        torch.Size([4, 5, 1])
    """

    def __init__(
        self,
        critic: TensorDictModuleBase,
        gamma: float,
        lmbda: float,
        standardize: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.critic, self.gamma, self.lmbda = critic, gamma, lmbda
        self.standardize = standardize
        self.in_keys = [*critic.in_keys, LOG_PROB_KEY, EXPERT_LOG_PROB_KEY]
        self.out_keys = ["expert_weight", "state_value", "value_target", "advantage"]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        after = tensordict["next"]
        value, next_value = (
            self.critic(data.select(*self.critic.in_keys))["state_value"]
            for data in (tensordict, after)
        )
        log_weight = tensordict[EXPERT_LOG_PROB_KEY] - tensordict[LOG_PROB_KEY]
        weight = log_weight.exp().clamp(max=1.0).unsqueeze(-1)  # [*B, T, 1]
        # The weight of the next step; the last entry is not used.
        next_weight = torch.cat([weight[..., 1:, :], weight[..., -1:, :]], -2)
        advantage, _ = generalized_advantage_estimate(
            self.gamma,
            self.lmbda * next_weight,  # type: ignore[arg-type]
            value,
            next_value,
            after["reward"],
            after["done"],
            after["terminated"],
        )
        tensordict["expert_weight"] = weight
        tensordict["state_value"] = value
        tensordict["value_target"] = value + weight * advantage
        tensordict["advantage"] = weight * self.standardize(advantage)
        return tensordict
