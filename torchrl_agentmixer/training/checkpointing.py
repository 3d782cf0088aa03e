"""Checkpoints of a training run: written whole or not at all, read without running code."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.checkpoint import (
    Checkpoint,
    CheckpointRotation,
    GlobalRNGState,
    StateDictCheckpointAdapter,
)
from torchrl.collectors import Collector

from torchrl_agentmixer import distributed
from torchrl_agentmixer.envs.simulation import load_simulation_state, simulation_state

FORMAT = 1
State = dict[str, Any]


class RunCheckpoints:
    """The checkpoints of one run, the newest few of them, on TorchRL's ``CheckpointRotation``.

    A checkpoint is one file, an archive with check sums. It is written beside the others and gets
    its name when it is complete, so that a process that dies on the way, or a full disk, costs
    none of the earlier ones. Loading verifies the whole file first, and reads tensors and numbers
    alone (``torch.load(weights_only=True)``): no code in a file is run.

    Args:
        path (str or Path): their folder, made when the first one is saved.

    Keyword Args:
        keep (int): how many of the newest ones stay.

    Examples:
        >>> import tempfile
        >>> checkpoints = RunCheckpoints(tempfile.mkdtemp())
        >>> _ = checkpoints.save({"weights": {"w": torch.ones(2)}}, frames=10)
        >>> frames, parts = checkpoints.load_newest()
        >>> frames, parts["weights"]["w"]
        (10, tensor([1., 1.]))
    """

    def __init__(self, path: str | Path, *, keep: int = 2) -> None:
        self.path = Path(path)
        self._rotation = CheckpointRotation(self.path, keep_last=keep)

    def save(self, parts: Mapping[str, State], *, frames: int) -> Path:
        """Write one, and remove those that are too many.

        Args:
            parts (mapping): names and states, nested dicts of tensors, numbers and strings.

        Keyword Args:
            frames (int): environment steps so far; of two checkpoints the newer has more.

        Raises:
            OSError: if it cannot be written, such as on a full disk; earlier ones stay.
        """
        self._remove_leftovers()
        try:
            checkpoint = _archive({name: _Part(state) for name, state in parts.items()})
            return self._rotation.save(checkpoint, step=frames, metadata={"format": FORMAT})
        except (OSError, RuntimeError) as error:
            there = next(path for path in (self.path, *self.path.parents) if path.exists())
            raise OSError(
                f"cannot write a checkpoint at frame {frames} to {self.path}, where "
                f"{shutil.disk_usage(there).free:,} bytes are free: {error}. "
                f"{len(self)} earlier ones are left as they were; make room, and resume."
            ) from error
        finally:
            self._remove_leftovers()

    def load_newest(
        self, on_damage: Callable[[str], None] | None = None
    ) -> tuple[int, dict[str, State]]:
        """What the newest whole checkpoint holds, on the CPU.

        Args:
            on_damage (callable, optional): told of every newer one that cannot be used, and why.

        Returns:
            tuple: environment steps so far, and the states by their names.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if there are some and none is whole, or of this format.
        """
        paths = self._rotation.checkpoints()[::-1]
        problems = []
        for path in paths:
            try:
                return self._read(path)
            except _Unusable as error:
                problems.append(f"{path}: {error}")
                if on_damage is not None:
                    on_damage(f"checkpoint {problems[-1]}; looking for an older one")
        problems += [f"{path}: no checkpoint archive" for path in self._damaged()]
        if problems:
            raise ValueError("no whole checkpoint:\n" + "\n".join(problems))
        raise FileNotFoundError(f"{self.path} holds no checkpoint to resume from.")

    @property
    def newest(self) -> Path | None:
        """The one with the most frames, or ``None``; whether it is whole, loading tells."""
        paths = self._rotation.checkpoints()
        return paths[-1] if paths else None

    def __len__(self) -> int:
        return len(self._rotation.checkpoints())

    def _read(self, path: Path) -> tuple[int, dict[str, State]]:
        try:
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            raise _Unusable(f"it is no whole archive ({error})") from error
        if damaged is not None:
            raise _Unusable(f"its check sum is wrong, in {damaged!r}")
        manifest = Checkpoint.manifest(path)
        found = manifest["metadata"].get("format")
        if found != FORMAT:
            raise _Unusable(f"it has format {found}, and this version reads {FORMAT}")
        parts = {name: _Part({}) for name in manifest["components"]}
        try:
            _archive(parts).load(path, map_location="cpu")
        except Exception as error:  # whatever a file that is none of ours brings about
            raise _Unusable(f"it cannot be read ({error})") from error
        frames = int(path.name.partition("-")[2].partition(".")[0])
        return frames, {name: part.state for name, part in parts.items()}

    def _damaged(self) -> list[Path]:
        """Files that have the name of a checkpoint, and are none."""
        if not self.path.is_dir():
            return []
        whole = set(self._rotation.checkpoints())
        return sorted(set(self.path.glob(f"{self._rotation.prefix}-*")) - whole)

    def _remove_leftovers(self) -> None:
        """What processes left that died while they wrote."""
        for pattern in (".*.stage-*", ".*.archive-*"):
            for path in self.path.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


class _Unusable(Exception):
    """Why a checkpoint is not used."""


class _Part:
    """A state that TorchRL's checkpoint takes and gives."""

    def __init__(self, state: State) -> None:
        self.state = state

    def state_dict(self) -> State:
        return self.state

    def load_state_dict(self, state: State) -> None:
        self.state = state


def _archive(parts: Mapping[str, _Part]) -> Checkpoint:
    checkpoint = Checkpoint(format="archive")
    for name, part in parts.items():
        checkpoint.register(name, part, adapter=StateDictCheckpointAdapter("torch"))
    return checkpoint


def parts_of_ranks(states: Sequence[Mapping[str, State]]) -> dict[str, State]:
    """The states of all ranks as parts of one checkpoint: ``name``, then ``name_1``, ...

    Examples:
        >>> parts_of_ranks([{"random": {"a": 1}}, {"random": {"a": 2}}])
        {'random': {'a': 1}, 'random_1': {'a': 2}}
    """
    return {
        name if number == 0 else f"{name}_{number}": part
        for number, state in enumerate(states)
        for name, part in state.items()
    }


def part_of_rank(parts: Mapping[str, State], name: str) -> State:
    """What this rank had of a part."""
    return parts[f"{name}_{distributed.rank()}" if distributed.rank() else name]


def check_ranks(written_by: int) -> None:
    """Raise an error if a checkpoint is that of another number of ranks."""
    if written_by != distributed.world_size():
        raise ValueError(
            f"expected as many ranks as the checkpoint was written by, {written_by}, got "
            f"{distributed.world_size()}: each has a state of its own. Resume it with "
            f"`torchrun --nproc-per-node {written_by}`, or with one process for 1."
        )


def collector_state(collector: Collector) -> State:
    """Where a collector and its environment stand; ``"env"`` is ``None`` where it cannot tell."""
    flat = collector._carrier.flatten_keys("/")
    return {
        "env": simulation_state(collector.env),
        "data": {key: value.clone() for key, value in flat.items()},
    }


def load_collector_state(collector: Collector, state: Mapping[str, Any]) -> bool:
    """Have a collector go on from there.

    Returns:
        bool: whether it does; if the environment could not tell, new episodes are begun.
    """
    if not load_simulation_state(collector.env, state["env"]):
        return False
    collector._carrier = _restored(collector._carrier, state["data"])
    return True


def _restored(like: TensorDictBase, flat: Mapping[str, torch.Tensor]) -> TensorDictBase:
    data = TensorDict({}, batch_size=like.batch_size, device=like.device)
    for key in like.keys(include_nested=True):
        nested = like.get(key)
        if isinstance(nested, TensorDictBase):  # groups of agents have batch sizes of their own
            data.set(key, nested.empty())
    for key, value in flat.items():
        data.set(tuple(key.split("/")), value.to(like.device or value.device))
    return data


def random_state() -> State:
    """Random generators of Python, numpy and torch, on the CPU and the accelerator."""
    return GlobalRNGState().state_dict()


def load_random_state(state: Mapping[str, Any]) -> None:
    """Set them all."""
    GlobalRNGState().load_state_dict(state)
