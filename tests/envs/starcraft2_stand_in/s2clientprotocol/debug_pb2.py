"""Commands that create, kill and draw."""

from __future__ import annotations

from dataclasses import dataclass, field

from .common_pb2 import Point, Point2D


@dataclass
class DebugCreateUnit:
    unit_type: int
    owner: int
    pos: Point2D
    quantity: int


@dataclass
class DebugKillUnit:
    tag: list[int]


@dataclass
class Line:
    p0: Point
    p1: Point


@dataclass
class DebugLine:
    line: Line


@dataclass
class DebugDraw:
    lines: list[DebugLine] = field(default_factory=list)


@dataclass
class DebugCommand:
    draw: DebugDraw | None = None
    create_unit: DebugCreateUnit | None = None
    kill_unit: DebugKillUnit | None = None
