"""Rendering of images without a display."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

Color = tuple[int, int, int]


class Canvas:
    """A white image of a size in pixels, with methods that draw; needs Pillow."""

    def __init__(self, width: int, height: int) -> None:
        if find_spec("PIL") is None:
            raise ImportError('rendering needs Pillow: pip install "torchrl_agentmixer[plots]"')
        from PIL import Image, ImageDraw

        self._image = Image.new("RGB", (int(width), int(height)), (255, 255, 255))
        self._draw = ImageDraw.Draw(self._image)

    def box(
        self, corners: tuple[float, ...], fill: Color | None = None, outline: Color | None = None
    ) -> None:
        """Draw a rectangle ``(left, top, right, bottom)``."""
        self._draw.rectangle(corners, fill=fill, outline=outline, width=3)

    def shape(
        self, center: tuple[float, float], outline: float | list[tuple[float, float]], fill: Color
    ) -> None:
        """Draw a disc of a radius, or a polygon with corners relative to ``center``."""
        x, y = center
        if isinstance(outline, float | int):
            corners = (x - outline, y - outline, x + outline, y + outline)
            self._draw.ellipse(corners, fill)
        else:
            self._draw.polygon([(x + dx, y + dy) for dx, dy in outline], fill=fill)

    def text(self, position: tuple[float, float], text: str, fill: Color = (20, 20, 20)) -> None:
        """Draw a line of text with its top left corner at ``position``."""
        self._draw.text(position, text, fill=fill)

    def caption(self, top: float, step: Any, reward: Any) -> None:
        """Write the step and the team reward below ``top``."""
        self.text((4, top + 4), f"step {int(step)}   team reward {float(reward):+.2f}")

    def image(self) -> np.ndarray:
        """The image, ``[height, width, 3]``, uint8."""
        return np.asarray(self._image).copy()


def to_rgb(color: Any, env_index: int = 0) -> Color:
    """Convert a color of channels in [0, 1], or one environment's of several, to integers."""
    if getattr(color, "ndim", 1) > 1:
        color = color[env_index]
    red, green, blue = (int(255 * float(channel)) for channel in color[:3])
    return red, green, blue
