"""Signals and worker crashes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torchrl.envs import EnvBase, ParallelEnv, TransformedEnv

from torchrl_agentmixer._torchrl_private import parallel_env_processes


class Interrupted(Exception):
    """Training that ended because of a signal.

    Args:
        message (str): what ended, where, and how to resume.
        signal_number (int): the signal.

    Examples:
        >>> Interrupted("SIGTERM at frame 40", signal.SIGTERM).exit_code
        143
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)
        self.signal_number = signal_number

    def __str__(self) -> str:
        return self.args[0]

    @property
    def exit_code(self) -> int:
        """Exit code of a script that the signal ends, as shells report it."""
        return 128 + self.signal_number


class SignalHandler:
    """Context manager that records SIGTERM and SIGINT (Ctrl-C) instead of ending the process.

    A second signal of the same kind has its usual effect. SIGUSR2 is recorded where a handler
    exists, and sent again at the exit: submitit resubmits a job at this signal, for which the
    checkpoint must be complete. Outside of the main thread nothing is recorded.

    Attributes:
        received (list of signal.Signals): signals so far.

    Examples:
        >>> with SignalHandler() as signals:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> signals.number
        15
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._previous: dict[int, Any] = {}
        self._resent: int | None = getattr(signal, "SIGUSR2", None)

    @property
    def number(self) -> int:
        """Number of the first signal; 0 before one."""
        return int(self.received[0]) if self.received else 0

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals to the main thread
        numbers = [signal.SIGTERM, signal.SIGINT]
        if self._resent is not None and callable(signal.getsignal(self._resent)):
            numbers.append(signal.Signals(self._resent))
        for number in numbers:
            # `None` is a handler from C code, which Python cannot install again.
            self._previous[number] = signal.getsignal(number) or signal.SIG_DFL
            signal.signal(number, self._record)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._resent in self.received:
            signal.raise_signal(self._resent)

    def _record(self, number: int, frame: Any) -> None:
        self.received.append(signal.Signals(number))
        signal.signal(number, self._previous[number])


def worker_processes(env: EnvBase) -> list[BaseProcess]:
    """Processes of a started ``ParallelEnv``, with or without transforms.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> worker_processes(make_env("matrix/climbing", num_envs=2))
        []
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return parallel_env_processes(env) if isinstance(env, ParallelEnv) else []


def dead_worker(
    workers: Sequence[BaseProcess], *, owner: str = "the parallel environment"
) -> str | None:
    """Description of the worker of ``owner`` that crashed; ``None`` if none did."""
    running = [worker for worker in workers if not _is_closed(worker)]
    if running:
        wait([worker.sentinel for worker in running], timeout=1)  # its pipe closes before it ends
    dead = [worker for worker in running if worker.exitcode]  # None: alive; 0: closed
    if not dead:
        return None
    # After a crash TorchRL terminates the other workers.
    first = next((worker for worker in dead if worker.exitcode != -signal.SIGTERM), dead[0])
    code = first.exitcode or 0
    how = (
        f"was killed by {signal.Signals(-code).name}"
        if code < 0
        else f"ended with exit code {code}; its own error is printed above"
    )
    number = f"worker {list(workers).index(first)} of {len(workers)}"
    return f"{number} of {owner} (process {first.pid}) {how}"


def end_processes(workers: Sequence[BaseProcess], seconds: float = 5.0) -> None:
    """Terminate processes, and kill those that are alive after ``seconds``."""
    alive = [worker for worker in workers if not _is_closed(worker) and worker.is_alive()]
    for worker in alive:
        worker.terminate()
    for worker in alive:
        worker.join(seconds)
        if worker.is_alive():
            worker.kill()
            worker.join()


def _is_closed(worker: BaseProcess) -> bool:
    """Whether ``worker.close()`` was called, as TorchRL does with ended workers."""
    try:
        worker.is_alive()
    except ValueError:
        return True
    return False
