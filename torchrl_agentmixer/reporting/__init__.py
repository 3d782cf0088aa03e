"""Tables, plots and data from run directories."""

from __future__ import annotations

from torchrl_agentmixer.reporting.marl_eval import marl_eval_data
from torchrl_agentmixer.reporting.plots import plot_learning_curve
from torchrl_agentmixer.reporting.report import write_report
from torchrl_agentmixer.reporting.runs import Run, check_comparable, read_metrics, read_runs
from torchrl_agentmixer.reporting.tables import median_table, results_table

__all__ = [
    "Run",
    "check_comparable",
    "marl_eval_data",
    "median_table",
    "plot_learning_curve",
    "read_metrics",
    "read_runs",
    "results_table",
    "write_report",
]
