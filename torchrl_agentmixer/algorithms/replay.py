"""Replay of single transitions, on TorchRL's ``ReplayBuffer``, that checkpoints can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, ReplayBuffer


class TransitionReplay:
    """The newest transitions, drawn uniformly; its state is plain tensors and numbers.

    Entries are stored under flat keys, so that a state needs no nested structure to be loaded.
    Nested entries of a sample have the sample's batch size ``[N]``, whatever they had before.

    Args:
        size (int): transitions that it holds; the oldest ones make room.

    Keyword Args:
        device (optional): where it lives.

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
        """Draw ``[size]`` transitions with replacement, from torch's global generator."""
        return self._buffer.sample(size).unflatten_keys("/")

    def state_dict(self) -> dict[str, Any]:
        """What is held, by flat keys, and where the next transition goes."""
        held = dict(self._buffer[:].items()) if len(self) else {}
        return {"data": held, "writer": self._buffer.writer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what another one held."""
        self._buffer.empty()
        if state["data"]:
            size = len(next(iter(state["data"].values())))
            self._buffer.extend(TensorDict(dict(state["data"]), [size], device=self.device))
        self._buffer.writer.load_state_dict(state["writer"])


def transition_keys(seen: Sequence[NestedKey], action: NestedKey) -> list[NestedKey]:
    """What a transition holds: what is read before and after the action, the action and the ends.

    Args:
        seen (sequence of NestedKey): entries that policy and critics read.
        action (NestedKey): where the action is.

    Examples:
        >>> transition_keys(["state"], ("agents", "action"))[:3]
        ['state', ('agents', 'action'), ('next', 'state')]
    """
    after = [("next", *(key if isinstance(key, tuple) else (key,))) for key in seen]
    ends = [("next", name) for name in ("reward", "done", "terminated")]
    return [*seen, action, *after, *ends]
