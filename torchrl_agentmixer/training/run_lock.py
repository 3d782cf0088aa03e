"""Ownership of a run directory by one process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"

_mutex = threading.Lock()
_held: dict[Path, list[int]] = {}  # descriptor, and number of owners in this process


def lock_directory(folder: str | Path) -> Callable[[], None]:
    """Make this process the owner of a folder until it ends or calls the returned function.

    The lock is an ``flock`` on the file ``.lock``, which holds the owner's process and host. The
    operating system drops it with the process, also after SIGKILL. There is no lock on platforms
    without ``fcntl``, or on file systems that do not support it.

    Args:
        folder (str or Path): an existing folder.

    Returns:
        callable: ends the ownership, and removes the file.

    Raises:
        BlockingIOError: if another process owns the folder; the message names it.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> release = lock_directory(folder)
        >>> release()
    """
    if fcntl is None:
        return lambda: None
    path = Path(folder).resolve() / NAME
    with _mutex:
        if path in _held and not _is_at(path, _held[path][0]):  # the folder was removed
            os.close(_held.pop(path)[0])
        descriptor, count = _held.get(path) or (_acquire(path), 0)
        _held[path] = [descriptor, count + 1]
    return partial(_release, path, descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 1000).decode() or "another process"
            os.close(descriptor)
            raise BlockingIOError(
                f"{path.parent}: expected a run directory that no other process uses, got one of "
                f"{owner}. Wait until it ends, or choose another directory."
            ) from error
        except OSError:  # a file system without locks
            break
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # its owner removed it in between
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor


def _release(path: Path, descriptor: int) -> None:
    with _mutex:
        held = _held.get(path)
        if held is None or held[0] != descriptor:
            return
        held[1] -= 1
        if held[1] == 0:
            if _is_at(path, descriptor):
                path.unlink(missing_ok=True)
            os.close(_held.pop(path)[0])


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path leads to an open file."""
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def _forget() -> None:
    """Close the locks in a forked worker, which may outlive their owner."""
    for descriptor, _ in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
