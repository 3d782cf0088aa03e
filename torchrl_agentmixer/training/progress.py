"""Progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, TextIO

from torchrl import torchrl_logger

_SHOWN = ("score", "return", "eval_return")


class ProgressBar:
    """Frames, frames per second, time left and latest returns, on a terminal.

    Without tqdm there is no bar, and messages go to TorchRL's logger.

    Args:
        total_frames (int): length of training.

    Keyword Args:
        file (text stream, optional): output, ``sys.stderr`` by default.

    Examples:
        >>> import io
        >>> bar = ProgressBar(100, file=io.StringIO())
        >>> bar.start(40)  # a resumed run
        >>> bar.update({"frames": 60, "return": 1.0})
        >>> bar.close()
    """

    def __init__(self, total_frames: int, *, file: TextIO | None = None) -> None:
        self._tqdm: Any = None
        if find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._tqdm = tqdm
        self._options = {"total": total_frames, "unit": " frames", "unit_scale": True, "file": file}
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def start(self, frames: int) -> None:
        """Show the bar at ``frames``; speed and time left count from here."""
        if self._tqdm is not None:  # `disable=None`: disabled where the output is not a terminal
            self._bar = self._tqdm(initial=frames, disable=None, **self._options)

    def update(self, row: Mapping[str, float | None]) -> None:
        """Show a row of metrics; a missing value leaves the latest one."""
        if self._bar is not None:
            self._shown |= {k: f"{row[k]:.3g}" for k in _SHOWN if row.get(k) is not None}
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(row["frames"] - self._bar.n)

    def log(self, message: str) -> None:
        """Print a message above the bar."""
        if self._tqdm is None:
            torchrl_logger.info(message)
        else:
            self._tqdm.write(message)

    def close(self) -> None:
        """End the bar; its last state stays visible."""
        if self._bar is not None:
            self._bar.close()
