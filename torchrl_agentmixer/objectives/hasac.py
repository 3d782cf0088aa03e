"""Actor loss of HASAC."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch.distributions import Distribution
from torchrl.modules.distributions.utils import rsample_and_log_prob
from torchrl.objectives import SACLoss


class HASACLoss(SACLoss):
    r"""TorchRL's ``SACLoss`` with HASAC's objective of one agent.

    HASAC (`arXiv 2306.10715 <https://arxiv.org/abs/2306.10715>`_) updates the agents in sequence.
    Given actions of the other agents, those of agents before it from their newest policies, agent
    :math:`i_m` minimizes

    .. math:: \mathbb E\left[\alpha \log \pi_{i_m}(a_{i_m} \mid o_{i_m})
              - \min_k Q_k(s, a_{i_m}, a_{-i_m})\right]

    over a reparameterized sample :math:`a_{i_m}`. The losses of critics and alpha are those of
    ``SACLoss`` with the joint policy as actor.

    Args:
        *args: as ``SACLoss``; the actor is the joint policy.

    Keyword Args:
        **kwargs: options of ``SACLoss``.

    Examples:
        >>> from torchrl_agentmixer.algorithms import HASAC
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("vmas/predator_prey", num_envs=5)
        >>> algorithm = HASAC(env, total_frames=100)
        >>> data = algorithm.policy(env.reset())  # actions of the team
        >>> agent = algorithm.agents[1]
        >>> dist = agent.policy.get_dist(agent.select(data))
        >>> loss, log_prob = algorithm.loss.agent_loss(data, dist, agent.index)
        >>> loss.shape, log_prob.shape
        (torch.Size([]), torch.Size([5]))
    """

    def agent_loss(
        self, tensordict: TensorDictBase, dist: Distribution, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The objective of one agent, and the log-probability of its sample.

        Args:
            tensordict (TensorDictBase): inputs of the critics, with the actions ``[*B, n, A]`` of
                the team; it is not modified.
            dist (Distribution): the agent's policy, of actions ``[*B, 1, A]``.
            index (int): index of the agent, whose own action in ``tensordict`` is not read.

        Returns:
            tuple of Tensor: a scalar; ``[*B]``, detached.
        """
        key = self.tensor_keys.action
        action, log_prob = rsample_and_log_prob(dist)
        before, _, after = tensordict.get(key).tensor_split((index, index + 1), -2)
        joint = torch.cat([before, action, after], -2)
        data = tensordict.select(*self.qvalue_network.in_keys).set(key, joint)
        value = torch.vmap(self._action_value, (0, None))(self.qvalue_network_params.detach(), data)
        loss = self.log_alpha.detach().exp() * log_prob - value.amin(0)
        return loss.mean(), log_prob.detach()

    def _action_value(self, params: TensorDictBase, data: TensorDictBase) -> torch.Tensor:
        """The value of one critic, ``[*B]``."""
        with params.to_module(self.qvalue_network):
            written = self.qvalue_network(data.copy())
        return written.get(self.tensor_keys.state_action_value).squeeze(-1)
