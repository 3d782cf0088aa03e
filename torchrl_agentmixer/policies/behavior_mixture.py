"""Mixture of expert and students for collection (AIL)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch.distributions import Distribution
from torchrl.envs.utils import exploration_type

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.policies.autoregressive import DETERMINISTIC
from torchrl_agentmixer.policies.product import LOG_PROB_KEY

EXPERT_LOG_PROB_KEY = "expert_log_prob"


class BehaviorMixture(TensorDictModuleBase):
    r"""Behavior policy :math:`\beta \pi_\theta(a|s) + (1 - \beta) \pi_\phi(a|b)` (Eq. 6).

    At every step the whole team acts by the expert with probability :math:`\beta`, else by the
    students. Writes the groups' actions, the exact log-probability of the joint action under the
    mixture as ``"action_log_prob"`` ``[*B]`` and under the expert as ``"expert_log_prob"``
    ``[*B]``, and the students' memory, if any. Under TorchRL's deterministic exploration types, the
    actions are the expert's modes.

    Args:
        groups (sequence of AgentGroup): the agents.
        expert (ProbabilisticTensorDictSequential): joint policy on the state.
        students (ProbabilisticTensorDictSequential): joint policy, decentralized.

    Keyword Args:
        expert_share (float): initial value of :math:`\beta`, a buffer of that name.

    Examples:
        >>> from torchrl_agentmixer.algorithms import AIL
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("grid/bridge_crossing", num_envs=4, seed=0)
        >>> policy = AIL(env, total_frames=100).policy
        >>> data = policy(env.reset())
        >>> data["agents", "action"].shape, data["action_log_prob"].shape
        (torch.Size([4, 2]), torch.Size([4]))
        >>> torch.equal(data["action_log_prob"], data["expert_log_prob"])  # beta = 1
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
        inputs = tensordict.select(*self.in_keys, strict=False)  # the policies say what is missing
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


def _written_dist(
    policy: ProbabilisticTensorDictSequential, output: TensorDictBase
) -> Distribution:
    """The distribution of the parameters that ``policy`` wrote to ``output``."""
    return policy.module[-1].get_dist(output)
