"""Checkpoints of a training run."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl.checkpoint import (
    Checkpoint,
    CheckpointRotation,
    GlobalRNGState,
    StateDictCheckpointAdapter,
)

FORMAT = 2
State = dict[str, Any]


class RunCheckpoints:
    """The newest checkpoints of one run, based on TorchRL's ``CheckpointRotation``.

    A checkpoint is one archive with checksums. It gets its name when it is complete, so that a
    crash or a full disk while writing leaves the earlier ones intact. Loading verifies the whole
    file first and does not run code from it (``torch.load(weights_only=True)``).

    Args:
        path (str or Path): folder of the checkpoints, created with the first one.

    Keyword Args:
        keep (int): number of newest checkpoints to keep.

    Examples:
        >>> import tempfile, torch
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
        """Write a checkpoint and remove the oldest ones.

        Args:
            parts (mapping): states by name, nested dicts of tensors, numbers and strings.

        Keyword Args:
            frames (int): environment steps so far.

        Raises:
            OSError: if it cannot be written, for example on a full disk.
        """
        self._remove_incomplete()
        try:
            checkpoint = _archive({name: _Part(state) for name, state in parts.items()})
            return self._rotation.save(checkpoint, step=frames, metadata={"format": FORMAT})
        except (OSError, RuntimeError) as error:
            disk = next(path for path in (self.path, *self.path.parents) if path.exists())
            raise OSError(
                f"cannot write a checkpoint at frame {frames} to {self.path} with "
                f"{shutil.disk_usage(disk).free:,} bytes free: {error}. "
                f"{len(self)} earlier checkpoints are intact: make room, and resume."
            ) from error
        finally:
            self._remove_incomplete()

    def load_newest(
        self, on_damage: Callable[[str], None] | None = None
    ) -> tuple[int, dict[str, State]]:
        """Load the newest intact checkpoint on the CPU.

        Args:
            on_damage (callable, optional): gets a message about each damaged newer one.

        Returns:
            tuple: environment steps, and states by name.

        Raises:
            FileNotFoundError: without checkpoints.
            ValueError: if none is intact and of this format.
        """
        problems = []
        for path in reversed(self._rotation.checkpoints()):
            try:
                return self._read(path)
            except _Unusable as error:
                problems.append(f"{path}: {error}")
                if on_damage is not None:
                    on_damage(f"checkpoint {problems[-1]}; trying an older one")
        archives = set(self._rotation.checkpoints())
        named = sorted(set(self.path.glob(f"{self._rotation.prefix}-*")) - archives)
        problems += [f"{path}: not a checkpoint archive" for path in named]
        if problems:
            raise ValueError("expected an intact checkpoint, found:\n" + "\n".join(problems))
        raise FileNotFoundError(f"{self.path} contains no checkpoint to resume from.")

    @property
    def newest(self) -> Path | None:
        """Path of the newest checkpoint, intact or damaged; ``None`` without checkpoints."""
        paths = self._rotation.checkpoints()
        return paths[-1] if paths else None

    def __len__(self) -> int:
        return len(self._rotation.checkpoints())

    def _read(self, path: Path) -> tuple[int, dict[str, State]]:
        try:
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            raise _Unusable(f"not a complete archive ({error})") from error
        if damaged is not None:
            raise _Unusable(f"wrong checksum of {damaged!r}")
        manifest = Checkpoint.manifest(path)
        found = manifest["metadata"].get("format")
        if found != FORMAT:
            raise _Unusable(f"expected format {FORMAT}, got {found}")
        parts = {name: _Part({}) for name in manifest["components"]}
        try:
            _archive(parts).load(path, map_location="cpu")
        except Exception as error:  # an archive of unknown content can raise anything
            raise _Unusable(f"unreadable ({error})") from error
        frames = int(path.name.partition("-")[2].partition(".")[0])
        return frames, {name: part.state for name, part in parts.items()}

    def _remove_incomplete(self) -> None:
        """Remove files of processes that died while writing."""
        for pattern in (".*.stage-*", ".*.archive-*"):
            for path in self.path.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


class _Unusable(Exception):
    """Why a checkpoint cannot be loaded."""


class _Part:
    """A state with the interface that TorchRL's ``Checkpoint`` saves and loads."""

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
    """States of all ranks as parts of one checkpoint: ``name`` of rank 0, ``name_1``, ...

    Examples:
        >>> parts_of_ranks([{"random": {"a": 1}}, {"random": {"a": 2}}])
        {'random': {'a': 1}, 'random_1': {'a': 2}}
    """
    return {
        f"{name}_{rank}" if rank else name: part
        for rank, state in enumerate(states)
        for name, part in state.items()
    }


def part_of_rank(parts: Mapping[str, State], name: str, rank: int) -> State:
    """One rank's state from the parts of a checkpoint."""
    return parts[f"{name}_{rank}" if rank else name]


def check_ranks(saved: int, current: int) -> None:
    """Raise a ``ValueError`` if a checkpoint has the states of another number of ranks."""
    if saved != current:
        raise ValueError(
            f"expected the checkpoint's number of ranks {saved}, got {current}: each rank has its "
            f"own state. Resume with `torchrun --nproc-per-node {saved}`, or without it for 1."
        )


def random_state() -> State:
    """States of the random generators of Python, numpy and torch (CPU and accelerator)."""
    return GlobalRNGState().state_dict()


def load_random_state(state: Mapping[str, Any]) -> None:
    """Restore a :func:`random_state`."""
    GlobalRNGState().load_state_dict(state)
