"""What ends a run from outside: signals, and worker processes that die."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torchrl.envs import EnvBase, ParallelEnv, TransformedEnv


@contextmanager
def asked_to_end() -> Iterator[list[signal.Signals]]:
    """Note SIGTERM and SIGINT instead of ending at once; a second one ends at once.

    So is SIGUSR2 where somebody handles it, as submitit does, which submits a job again that it has
    told so of its time limit: it is handed on at the end, when there is a checkpoint.
    """
    asked: list[signal.Signals] = []

    def note(number: int, frame: Any) -> None:
        asked.append(signal.Signals(number))
        signal.signal(number, before[number])

    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals go to the main thread
        return
    numbers = [signal.SIGTERM, signal.SIGINT]
    handed_on = getattr(signal, "SIGUSR2", None)
    if handed_on is not None and callable(signal.getsignal(handed_on)):
        numbers.append(handed_on)
    before = {int(number): signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if handed_on in asked:
            signal.raise_signal(handed_on)


def worker_processes(env: EnvBase) -> list[BaseProcess]:
    """The processes of a ``ParallelEnv`` that was started, with transforms or without.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> worker_processes(make_env("matrix/climbing", num_envs=2))
        []
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return list(vars(env).get("_workers") or []) if isinstance(env, ParallelEnv) else []


def what_died(workers: Sequence[BaseProcess], of: str = "the parallel environment") -> str | None:
    """The worker that ended by itself, and how; ``None`` if all live, or were asked to end."""
    if not workers:
        return None
    workers = list(workers)
    left = [worker for worker in workers if not _is_closed(worker)]
    wait([worker.sentinel for worker in left], timeout=1)  # a pipe closes before its process ends
    dead = [worker for worker in left if worker.exitcode]  # None: it lives; 0: it was closed
    if not dead:
        return None
    # When one dies, TorchRL terminates the others.
    first = next((worker for worker in dead if worker.exitcode != -signal.SIGTERM), dead[0])
    code = first.exitcode or 0
    how = (
        f"was killed by {signal.Signals(-code).name}"
        if code < 0
        else f"ended with exit code {code}; its own error is printed above"
    )
    where = f"worker {workers.index(first)} of {len(workers)}"
    return f"{where} of {of} (process {first.pid}) {how}"


def end_processes(workers: Sequence[BaseProcess], seconds: float = 5.0) -> None:
    """Leave none behind: terminate, and kill what does not end in ``seconds``."""
    left = [worker for worker in workers if not _is_closed(worker) and worker.is_alive()]
    for worker in left:
        worker.terminate()
    for worker in left:
        worker.join(seconds)
        if worker.is_alive():
            worker.kill()
            worker.join()


def _is_closed(worker: BaseProcess) -> bool:
    """Whether TorchRL has ended it, and given its process up."""
    try:
        worker.is_alive()
    except ValueError:
        return True
    return False
