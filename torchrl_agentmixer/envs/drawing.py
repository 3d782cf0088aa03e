"""Images without a display."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

Color = tuple[int, int, int]


class Canvas:
    """A white picture to draw boxes, discs and text on, in pixels.

    Args:
        width (int): pixels.
        height (int): pixels.

    Raises:
        ImportError: without Pillow, with the command that installs it.

    Examples:
        >>> canvas = Canvas(20, 10)
        >>> canvas.box((0, 0, 5, 5), fill=(255, 0, 0))
        >>> canvas.image().shape
        (10, 20, 3)
    """

    def __init__(self, width: int, height: int) -> None:
        if find_spec("PIL") is None:
            raise ImportError('rendering needs Pillow: pip install "torchrl_agentmixer[plots]"')
        from PIL import Image, ImageDraw

        self._image = Image.new("RGB", (int(width), int(height)), (255, 255, 255))
        self._draw = ImageDraw.Draw(self._image)

    def box(
        self, corners: tuple[float, ...], fill: Color | None = None, outline: Color | None = None
    ) -> None:
        """A rectangle ``(left, top, right, bottom)``."""
        self._draw.rectangle(corners, fill=fill, outline=outline, width=3)

    def disc(
        self, center: tuple[float, float], radius: float, fill: Any = None, outline: Any = None
    ) -> None:
        """A circle."""
        x, y = center
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill, outline)

    def text(self, position: tuple[float, float], text: str, fill: Color = (20, 20, 20)) -> None:
        """A line of text, its top left corner at ``position``."""
        self._draw.text(position, text, fill=fill)

    def image(self) -> np.ndarray:
        """The picture, ``[height, width, 3]``, uint8."""
        return np.asarray(self._image).copy()
