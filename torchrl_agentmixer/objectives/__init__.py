"""Losses that TorchRL lacks."""

from __future__ import annotations

from torchrl_agentmixer.objectives.huber_ppo import DistributedValueNorm, HuberPPOLoss

__all__ = ["DistributedValueNorm", "HuberPPOLoss"]
