"""The loop that trains any method, and the evaluation of what it deploys."""

from __future__ import annotations

from torchrl_agentmixer.training.checkpointing import RunCheckpoints
from torchrl_agentmixer.training.collection import Workers
from torchrl_agentmixer.training.early_stopping import EarlyStopping
from torchrl_agentmixer.training.evaluation import Evaluation, evaluate, record_gif
from torchrl_agentmixer.training.logging import MetricLoggers
from torchrl_agentmixer.training.loop import Algorithm, LoopConfig, train
from torchrl_agentmixer.training.memory import keep_freed_memory
from torchrl_agentmixer.training.progress import ProgressBar
from torchrl_agentmixer.training.run_directory import RunDirectory

__all__ = [
    "Algorithm",
    "EarlyStopping",
    "Evaluation",
    "LoopConfig",
    "MetricLoggers",
    "ProgressBar",
    "RunCheckpoints",
    "RunDirectory",
    "Workers",
    "evaluate",
    "keep_freed_memory",
    "record_gif",
    "train",
]
