"""AIL."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.objectives.value.functional import generalized_advantage_estimate

from torchrl_agentmixer import distributed
from torchrl_agentmixer.policies.behavior_mixture import EXPERT_LOG_PROB_KEY
from torchrl_agentmixer.policies.product import LOG_PROB_KEY


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
        tensordict["advantage"] = weight * distributed.standardized(advantage)
        return tensordict
