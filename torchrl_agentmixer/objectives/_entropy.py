"""Entropy of PPO losses."""

from __future__ import annotations

import torch
from torch.distributions import Distribution
from torchrl.modules.distributions.utils import has_analytic_entropy


class AnalyticEntropy:
    """Mixin of PPO losses: a distribution's own entropy.

    TorchRL reads its values in eager mode, in case one is not finite, and always samples as well
    when compiled.
    """

    def _get_entropy(self, dist: Distribution, adv_shape: torch.Size) -> torch.Tensor:
        if has_analytic_entropy(dist):
            return dist.entropy().unsqueeze(-1)
        return super()._get_entropy(dist, adv_shape)  # type: ignore[misc]
