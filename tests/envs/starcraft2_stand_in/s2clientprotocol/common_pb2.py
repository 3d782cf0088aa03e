"""Points and races."""

from __future__ import annotations

import struct
from dataclasses import dataclass

Terran, Zerg, Protoss, Random = 1, 2, 3, 4


def single(value: float) -> float:
    """A number as the protocol sends it, with 32 bits."""
    return struct.unpack("f", struct.pack("f", value))[0]


@dataclass
class Point2D:
    x: float = 0.0
    y: float = 0.0

    def __post_init__(self) -> None:
        self.x, self.y = single(self.x), single(self.y)


@dataclass
class Point(Point2D):
    z: float = 0.0
