"""Base class of losses without functional parameters."""

from __future__ import annotations

from tensordict import NestedKey
from torchrl.objectives import LossModule


class StatefulLoss(LossModule):
    """``LossModule`` without functional parameters and without a value estimator."""

    @property
    def functional(self) -> bool:
        """Parameters stay in the modules."""
        return False

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """No value estimator."""
