"""An expert and its students as one policy, and the expert's advantages from what they did."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch.distributions import Distribution
from torchrl.envs.utils import exploration_type
from torchrl.objectives.value.functional import generalized_advantage_estimate

from torchrl_agentmixer import ranks
from torchrl_agentmixer.algorithms.in_turn import DETERMINISTIC
from torchrl_agentmixer.decentralized import LOG_PROB_KEY
from torchrl_agentmixer.groups import AgentGroup

EXPERT_LOG_PROB_KEY = "expert_log_prob"


class BehaviorMixture(TensorDictModuleBase):
    r"""The team acts by the expert with probability :math:`\beta`, else by the students (Eq. 6).

    Drawn anew at every step, for the whole team. Writes the groups' actions, the exact
    log-probability of the joint action under the mixture,
    :math:`\log(\beta \pi_\theta(a|s) + (1 - \beta) \pi_\phi(a|b))`, as ``"action_log_prob"``
    ``[*B]``, the expert's as ``"expert_log_prob"`` ``[*B]``, and the students' memory if they have
    one. Where TorchRL's exploration type is deterministic, the actions are the expert's modes.

    Args:
        groups (sequence of AgentGroup): the agents.
        expert (ProbabilisticTensorDictSequential): joint policy on the state.
        students (ProbabilisticTensorDictSequential): joint policy, decentralized.

    Keyword Args:
        expert_share (float): first value of :math:`\beta`, a buffer of that name.

    Examples:
        >>> from torchrl_agentmixer.algorithms import AIL
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=4, seed=0)
        >>> policy = AIL(env, total_frames=100).policy
        >>> data = policy(env.reset())
        >>> data["agents", "action"].shape, data["action_log_prob"].shape
        (torch.Size([4, 2]), torch.Size([4]))
        >>> torch.equal(data["action_log_prob"], data["expert_log_prob"])  # beta is 1
        True
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        expert: ProbabilisticTensorDictSequential,
        students: ProbabilisticTensorDictSequential,
        *,
        expert_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.expert, self.students = expert, students
        self.action_keys = [group.key("action") for group in groups]
        self._memory_keys = [key for key in students.out_keys if key[0] == "next"]
        self.in_keys = list(dict.fromkeys([*expert.in_keys, *students.in_keys]))
        self.out_keys = [
            *self.action_keys,
            LOG_PROB_KEY,
            EXPERT_LOG_PROB_KEY,
            *self._memory_keys,
        ]
        self.expert_share: torch.Tensor
        self.register_buffer("expert_share", torch.tensor(float(expert_share)))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        inputs = tensordict.select(*self.in_keys)
        drawn = [policy(inputs.copy()) for policy in (self.expert, self.students)]
        by_expert = torch.rand(inputs.batch_size, device=inputs.device) < self.expert_share
        if exploration_type() in DETERMINISTIC:
            by_expert = torch.ones_like(by_expert)
        actions = []
        for key in self.action_keys:
            expert, student = (output.get(key) for output in drawn)
            chosen = by_expert.reshape(*by_expert.shape, *[1] * (expert.ndim - by_expert.ndim))
            actions.append(torch.where(chosen, expert, student))
            tensordict.set(key, actions[-1])
        expert, student = (
            _written_dist(policy, output).log_prob(*actions)
            for policy, output in zip((self.expert, self.students), drawn, strict=True)
        )  # [*B]
        share = self.expert_share
        mixture = torch.logaddexp(expert + share.log(), student + (-share).log1p())
        tensordict.set(LOG_PROB_KEY, mixture)
        tensordict.set(EXPERT_LOG_PROB_KEY, expert)
        return tensordict.update(drawn[1].select(*self._memory_keys))


class ExpertAdvantage(TensorDictModuleBase):
    r"""The expert's advantages and value targets from steps of the mixture, see :class:`AIL`.

    Reads rewards, ends, states, ``"action_log_prob"`` and ``"expert_log_prob"`` of trajectories
    ``[*B, T]``; writes ``"expert_weight"`` :math:`\rho`, ``"state_value"``, ``"value_target"`` and
    ``"advantage"``, standardized over the batch and times :math:`\rho`, all ``[*B, T, 1]``.

    Args:
        critic (TensorDictModuleBase): maps the state to ``"state_value"``.
        gamma (float): discount factor.
        lmbda (float): lambda of GAE.

    Examples:
        >>> from torchrl_agentmixer.algorithms import AIL
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=4, seed=0)
        >>> algorithm = AIL(env, total_frames=100)
        >>> data = env.rollout(5, algorithm.policy).detach()
        >>> algorithm.advantage(data)["advantage"].shape
        torch.Size([4, 5, 1])
    """

    def __init__(self, critic: TensorDictModuleBase, gamma: float, lmbda: float) -> None:
        super().__init__()
        self.critic, self.gamma, self.lmbda = critic, gamma, lmbda
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
        # Of the step after; the last one's is read nowhere, for no step follows it.
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
        tensordict["advantage"] = weight * ranks.standardized(advantage)
        return tensordict


def _written_dist(
    policy: ProbabilisticTensorDictSequential, output: TensorDictBase
) -> Distribution:
    """The distribution whose parameters ``policy`` has just written, without another pass."""
    return policy.module[-1].get_dist(output)
