"""Measures of consistency between the trained and the deployed policy."""

from __future__ import annotations

from torchrl_agentmixer.diagnostics.consistency import consistency_metrics, mode_agreement

__all__ = ["consistency_metrics", "mode_agreement"]
