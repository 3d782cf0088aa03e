"""Loss over several groups."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_agentmixer.objectives.grouped import GroupedLoss


class Fixed(nn.Module):
    """Loss module with fixed outputs."""

    def __init__(self, **values):
        super().__init__()
        self.values = values

    def forward(self, batch):
        return TensorDict({k: torch.tensor(v) * batch["x"].mean() for k, v in self.values.items()})


def test_means_are_weighted_by_the_numbers_of_agents():
    """Entries per agent are averaged first; an entry of only some losses is averaged over these."""
    loss = GroupedLoss([Fixed(a=1.0, b=[2.0, 4.0]), Fixed(a=4.0), Fixed(b=9.0)], [2, 1, 3])
    out = loss(TensorDict({"x": torch.full((5,), 10.0)}, [5]))
    assert out["a"].item() == pytest.approx(10 * (2 * 1 + 1 * 4) / 3)
    assert out["b"].item() == pytest.approx(10 * (2 * 3 + 3 * 9) / 5)
    assert out["b"].shape == ()
