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

    def shape(
        self, center: tuple[float, float], outline: float | list[tuple[float, float]], fill: Color
    ) -> None:
        """A disc of this radius, or a polygon with these corners relative to ``center``."""
        if isinstance(outline, float | int):
            self.disc(center, outline, fill)
        else:
            self._draw.polygon([(center[0] + x, center[1] + y) for x, y in outline], fill=fill)

    def text(self, position: tuple[float, float], text: str, fill: Color = (20, 20, 20)) -> None:
        """A line of text, its top left corner at ``position``."""
        self._draw.text(position, text, fill=fill)

    def image(self) -> np.ndarray:
        """The picture, ``[height, width, 3]``, uint8."""
        return np.asarray(self._image).copy()


def to_rgb(color: Any, env_index: int = 0) -> Color:
    """A color of channels in [0, 1], one for all environments or one each, in whole numbers.

    Examples:
        >>> to_rgb((1.0, 0.5, 0.0))
        (255, 127, 0)
    """
    if getattr(color, "ndim", 1) > 1:
        color = color[env_index]
    red, green, blue = (int(255 * float(channel)) for channel in color[:3])
    return red, green, blue
