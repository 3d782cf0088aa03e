"""Interface between the training loop and the algorithms, and the loop's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_agentmixer.training.early_stopping import EarlyStopping

Row = dict[str, float | None]
State = dict[str, Any]


class Algorithm(Protocol):
    """What the training loop needs of an algorithm.

    Attributes:
        policy: collects.
        execution_policy: is deployed.
    """

    policy: TensorDictModuleBase
    execution_policy: TensorDictModuleBase

    @property
    def evaluated_policies(self) -> Mapping[str, TensorDictModuleBase]:
        """Policies to evaluate by the prefix of their metrics; ``"eval"`` is the deployed one."""
        ...

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Learn from trajectories ``[num_envs, steps]``; return metrics."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Parameters and buffers."""
        ...

    def checkpoint_state(self) -> State:
        """Everything that a resumed training needs."""
        ...

    def load_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`checkpoint_state`."""
        ...


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
        for name, value in vars(self).items():
            if name not in ("eval_seed", "early_stopping") and value is not None and value <= 0:
                raise ValueError(f"LoopConfig: expected `{name}` > 0, got {value}.")
