"""Candidate of several studies: AgentMixer whose advantages are standardized also after optimism.

Optimistic advantages have a mean above zero: what was better than average gains probability and
nothing loses any. Standardized again, all actions that are worse than average lose equally. A
constant that is subtracted from all advantages does not change the expected gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase

from torchrl_agentmixer.algorithms import AgentMixer, AgentMixerConfig
from torchrl_agentmixer.algorithms.registry import register_algorithm
from torchrl_agentmixer.objectives import HuberPPOLoss


class StandardizedTwiceLoss(HuberPPOLoss):
    """Loss with a second standardization while optimism is above 0."""

    def _maybe_normalize_advantage(
        self, advantage: torch.Tensor, tensordict: TensorDictBase, **kwargs: Any
    ) -> torch.Tensor:
        advantage = super()._maybe_normalize_advantage(advantage, tensordict, **kwargs)
        again = self._standardize_advantage(advantage, tensordict)
        return torch.where(self.optimism > 0, again, advantage)


class StandardizedTwice(AgentMixer):
    """AgentMixer with :class:`StandardizedTwiceLoss`."""

    loss_class = StandardizedTwiceLoss


register_algorithm("agent_mixer_standardized_twice", StandardizedTwice, AgentMixerConfig)
