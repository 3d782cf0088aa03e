"""Checkpoints of a training run."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchrl.checkpoint import Checkpoint, CheckpointRotation, StateDictCheckpointAdapter

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
        >>> _ = checkpoints.save({"weights": torch.ones(2)}, frames=10)
        >>> checkpoints.load_newest()
        (10, {'weights': tensor([1., 1.])})
    """

    def __init__(self, path: str | Path, *, keep: int = 2) -> None:
        self.path = Path(path)
        self._rotation = CheckpointRotation(self.path, keep_last=keep)

    def save(self, state: State, *, frames: int) -> Path:
        """Write a checkpoint and remove the oldest ones.

        Args:
            state (dict): nested dicts and lists of tensors, numbers and strings.

        Keyword Args:
            frames (int): environment steps so far.

        Raises:
            OSError: if it cannot be written, for example on a full disk.
        """
        self._remove_incomplete()
        try:
            checkpoint = _archive(_State(state))
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

    def load_newest(self, on_damage: Callable[[str], None] | None = None) -> tuple[int, State]:
        """Load the newest intact checkpoint on the CPU.

        Args:
            on_damage (callable, optional): gets a message about each damaged newer one.

        Returns:
            tuple: environment steps, and the state.

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

    def _read(self, path: Path) -> tuple[int, State]:
        try:
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            raise _Unusable(f"not a complete archive ({error})") from error
        if damaged is not None:
            raise _Unusable(f"wrong checksum of {damaged!r}")
        found = Checkpoint.manifest(path)["metadata"].get("format")
        if found != FORMAT:
            raise _Unusable(f"expected format {FORMAT}, got {found}")
        loaded = _State({})
        try:
            _archive(loaded).load(path, map_location="cpu")
        except Exception as error:  # an archive of unknown content can raise anything
            raise _Unusable(f"unreadable ({error})") from error
        return int(path.name.partition("-")[2].partition(".")[0]), loaded.state

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


class _State:
    """A state with the interface that TorchRL's ``Checkpoint`` saves and loads."""

    def __init__(self, state: State) -> None:
        self.state = state

    def state_dict(self) -> State:
        return self.state

    def load_state_dict(self, state: State) -> None:
        self.state = state


def _archive(state: _State) -> Checkpoint:
    checkpoint = Checkpoint(format="archive")
    checkpoint.register("state", state, adapter=StateDictCheckpointAdapter("torch"))
    return checkpoint


def state_of_rank(states: Sequence[State], rank: int, world_size: int) -> State:
    """One rank's state from those of all ranks in a checkpoint.

    Raises:
        ValueError: if the checkpoint has another number of ranks.
    """
    if len(states) != world_size:
        raise ValueError(
            f"expected the checkpoint's number of ranks {len(states)}, got {world_size}. Resume "
            f"with `torchrun --nproc-per-node {len(states)}`, or without it for 1."
        )
    return states[rank]
