"""The training loop, evaluation, checkpoints and run directories."""

from __future__ import annotations

from torchrl_agentmixer.training.checkpointing import RunCheckpoints
from torchrl_agentmixer.training.early_stopping import EarlyStopping
from torchrl_agentmixer.training.evaluation import Evaluation, evaluate, record_gif
from torchrl_agentmixer.training.logging import MetricLoggers
from torchrl_agentmixer.training.loop import train
from torchrl_agentmixer.training.memory import keep_freed_memory
from torchrl_agentmixer.training.progress import ProgressBar
from torchrl_agentmixer.training.protocol import LoopConfig
from torchrl_agentmixer.training.run_directory import RunDirectory
from torchrl_agentmixer.training.signals import Interrupted
from torchrl_agentmixer.training.workers import Workers

__all__ = [
    "EarlyStopping",
    "Evaluation",
    "Interrupted",
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
