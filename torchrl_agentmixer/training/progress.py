"""Progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

_SHOWN = ("score", "return", "eval_return")


class ProgressBar:
    """Frames, frames per second, time left and latest returns, where the output is a terminal.

    Args:
        total_frames (int): length of training.

    Keyword Args:
        file (text stream, optional): output, ``sys.stderr`` by default.

    Raises:
        ImportError: without tqdm, with the command that installs it.

    Examples:
        >>> import io
        >>> bar = ProgressBar(100, file=io.StringIO())
        >>> bar.start(40)  # a resumed run
        >>> bar.update({"frames": 60, "return": 1.0})
        >>> bar.close()
    """

    def __init__(self, total_frames: int, *, file: TextIO | None = None) -> None:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ImportError("ProgressBar needs tqdm: pip install tqdm") from error
        self._tqdm, self._total, self._file = tqdm, total_frames, file
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def start(self, frames: int) -> None:
        """Show the bar at ``frames``; speed and time left count from here."""
        options = {"unit": " frames", "unit_scale": True, "file": self._file}
        # `disable=None` disables the bar where the output is not a terminal.
        self._bar = self._tqdm(total=self._total, initial=frames, disable=None, **options)

    def update(self, row: Mapping[str, float | None]) -> None:
        """Show a row of metrics; a missing value leaves the latest one."""
        self._shown |= {k: f"{row[k]:.3g}" for k in _SHOWN if row.get(k) is not None}
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(row["frames"] - self._bar.n)

    def log(self, message: str) -> None:
        """Print a message above the bar."""
        self._tqdm.write(message)

    def close(self) -> None:
        """End the bar; its last state stays visible."""
        if self._bar is not None:
            self._bar.close()
