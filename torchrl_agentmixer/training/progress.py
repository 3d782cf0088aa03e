"""A live line on how a run goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

_SHOWN = ("score", "return", "eval_return")


class ProgressBar:
    """Frames done, frames/s, time left and the latest returns; quiet where there is no terminal.

    Args:
        total_frames (int): of the whole training.

    Keyword Args:
        file (text stream, optional): where it goes, ``sys.stderr`` by default.

    Raises:
        ImportError: without tqdm, with the command that installs it.

    Examples:
        >>> import io
        >>> bar = ProgressBar(100, file=io.StringIO())
        >>> bar.start(40)  # a run that was resumed
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
        """Begin at so many frames; speed and time left are of what follows."""
        self._bar = self._tqdm(
            total=self._total,
            initial=frames,
            unit=" frames",
            unit_scale=True,
            file=self._file,
            disable=None,  # where the output is no terminal
        )

    def update(self, row: Mapping[str, float | None]) -> None:
        """Show a row of metrics; of what it lacks, the latest stays."""
        for name in _SHOWN:
            value = row.get(name)
            if value is not None:
                self._shown[name] = f"{value:.3g}"
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(row["frames"] - self._bar.n)

    def say(self, message: str) -> None:
        """Print a line without breaking the bar."""
        self._tqdm.write(message)

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()
