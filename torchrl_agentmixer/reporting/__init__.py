"""Tables and plots from what the training loop wrote."""

from __future__ import annotations

from torchrl_agentmixer.reporting.plots import plot_learning_curve
from torchrl_agentmixer.reporting.tables import read_metrics, results_table

__all__ = ["plot_learning_curve", "read_metrics", "results_table"]
