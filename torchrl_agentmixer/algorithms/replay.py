"""Replay buffer of transitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, ReplayBuffer


class TransitionReplay:
    """Uniform replay of transitions on TorchRL's ``ReplayBuffer``, with a state of plain tensors.

    Entries are stored under flat keys. Nested entries of a sample have its batch size ``[N]``.

    Args:
        size (int): capacity in transitions; the oldest are overwritten.

    Keyword Args:
        device (optional): device of the storage.

    Examples:
        >>> replay = TransitionReplay(100)
        >>> observation = torch.randn(7, 3, 4)
        >>> replay.extend(TensorDict({"agents": {"observation": observation}}, [7]))
        >>> len(replay), replay.sample(5)["agents", "observation"].shape
        (7, torch.Size([5, 3, 4]))
    """

    def __init__(self, size: int, *, device: torch.device | str | None = None) -> None:
        self.device = torch.device(device or "cpu")
        self._buffer = ReplayBuffer(storage=LazyTensorStorage(size, device=self.device))

    def __len__(self) -> int:
        return len(self._buffer)

    def extend(self, transitions: TensorDictBase) -> None:
        """Add transitions ``[N]``."""
        self._buffer.extend(transitions.flatten_keys("/"))

    def sample(self, size: int) -> TensorDictBase:
        """Draw ``[size]`` transitions with replacement from torch's global generator."""
        return self._buffer.sample(size).unflatten_keys("/")

    def state_dict(self) -> dict[str, Any]:
        """Transitions by flat keys, and the writer's position."""
        held = dict(self._buffer[:].items()) if len(self) else {}
        return {"data": held, "writer": self._buffer.writer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the transitions by those of a state."""
        self._buffer.empty()
        if state["data"]:
            size = len(next(iter(state["data"].values())))
            self._buffer.extend(TensorDict(dict(state["data"]), [size], device=self.device))
        self._buffer.writer.load_state_dict(state["writer"])


def transition_keys(seen: Sequence[NestedKey], action: NestedKey) -> list[NestedKey]:
    """Keys of a transition: inputs before and after the action, action, reward and done flags.

    Args:
        seen (sequence of NestedKey): inputs of policy and critics.
        action (NestedKey): key of the action.

    Examples:
        >>> transition_keys(["state"], ("agents", "action"))[:3]
        ['state', ('agents', 'action'), ('next', 'state')]
    """
    after = [("next", *(key if isinstance(key, tuple) else (key,))) for key in seen]
    ends = [("next", name) for name in ("reward", "done", "terminated")]
    return [*seen, action, *after, *ends]
