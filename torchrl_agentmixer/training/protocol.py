"""Configuration of the training loop, and its types."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torchrl_agentmixer._fields import check_fields
from torchrl_agentmixer.training.early_stopping import EarlyStopping

Row = dict[str, float | None]
State = dict[str, Any]


@dataclass(kw_only=True)
class LoopConfig:
    """Length of a training run and its intervals, in environment steps ("frames").

    Args:
        total_frames: length of training.
        frames_per_batch: frames of one batch, a multiple of the number of environments.
        eval_interval: frames between evaluations; the last batch is followed by one as well.
        eval_steps: time limit of evaluation episodes.
        eval_seed: seed of the evaluation episodes, the same at each evaluation.
        checkpoint_interval: frames between checkpoints; ``None`` for no checkpoints.
        keep_checkpoints: number of newest checkpoints to keep.
        max_time: wall time in seconds after which training stops; ``None`` for no limit.
        video_interval: frames between animations of an evaluation episode, the first one before
            training; ``None`` for no animations.
        early_stopping: when training ends before ``total_frames``; never by default.

    Raises:
        ValueError: for a number that is not positive.
    """

    total_frames: int
    frames_per_batch: int
    eval_interval: int
    eval_steps: int
    eval_seed: int = 1_000_003
    checkpoint_interval: int | None = None
    keep_checkpoints: int = 2
    max_time: float | None = None
    video_interval: int | None = None
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)

    def __post_init__(self) -> None:
        positive = [f.name for f in fields(self) if f.name not in ("eval_seed", "early_stopping")]
        check_fields(self, {"eval_seed": "[0, inf)", **dict.fromkeys(positive, "(0, inf]")})
