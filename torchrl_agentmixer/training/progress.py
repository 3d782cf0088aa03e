"""Progress of a run: a bar on a terminal, else a line per evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, TextIO

from torchrl import torchrl_logger

_SHOWN = ("score", "return", "eval_return")


class ProgressBar:
    """Frames, frames per second, time left and latest returns.

    A bar on a terminal, if tqdm is installed; else one line per evaluation. Speed and time left
    are estimated from all frames since :meth:`start`. Without tqdm, lines and messages go to
    TorchRL's logger.

    Args:
        total_frames (int): length of training.

    Keyword Args:
        file (text stream, optional): output of bar and lines, ``sys.stderr`` by default.
        name (str): start of each line, such as the run directory.

    Examples:
        >>> import io
        >>> bar = ProgressBar(100, file=io.StringIO())
        >>> bar.start(40)  # a resumed run
        >>> bar.update({"frames": 60, "return": 1.0})
        >>> bar.close()
    """

    def __init__(self, total_frames: int, *, file: TextIO | None = None, name: str = "") -> None:
        self._tqdm: Any = None
        if find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._tqdm = tqdm
        self.total_frames = total_frames
        self.prefix = f"{name}: " if name else ""
        self._options = {"total": total_frames, "unit": " frames", "unit_scale": True, "file": file}
        self._file = file
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def start(self, frames: int) -> None:
        """Show the bar at ``frames``; speed and time left count from here."""
        self._first, self._start_time = frames, time.monotonic()
        if self._tqdm is not None:  # `disable=None`: disabled where the output is not a terminal
            self._bar = self._tqdm(initial=frames, disable=None, **self._options)

    def update(self, row: Mapping[str, float | None]) -> None:
        """Show a row of metrics; a missing value leaves the latest one."""
        self._shown |= {k: f"{row[k]:.3g}" for k in _SHOWN if row.get(k) is not None}
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(row["frames"] - self._bar.n)
        elif row.get("eval_return") is not None:
            self._write(f"{self.prefix}{self._line(int(row['frames'] or 0))}", self._file)

    def _line(self, frames: int) -> str:
        """Frames, the latest returns, speed and time left."""
        seconds = max(time.monotonic() - self._start_time, 1e-9)
        speed = max(frames - self._first, 1) / seconds
        left = timedelta(seconds=round(max(self.total_frames - frames, 0) / speed))
        returns = ", ".join(f"{name} {value}" for name, value in self._shown.items())
        return (
            f"{frames:,} of {self.total_frames:,} frames ({frames / self.total_frames:.0%}), "
            f"{returns}, {speed:,.0f} frames/s, {left} left"
        )

    def log(self, message: str) -> None:
        """Print a message above the bar."""
        self._write(message, sys.stdout)

    def _write(self, text: str, file: TextIO | None) -> None:
        """Print a line, at once also into a file or pipe."""
        if self._tqdm is None:
            torchrl_logger.info(text)
        else:
            file = file or sys.stderr
            self._tqdm.write(text, file=file)
            file.flush()

    def close(self) -> None:
        """End the bar; its last state stays visible."""
        if self._bar is not None:
            self._bar.close()
