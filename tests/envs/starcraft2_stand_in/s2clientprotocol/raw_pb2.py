"""Commands for units."""

from __future__ import annotations

from dataclasses import dataclass, field

from .common_pb2 import Point2D


@dataclass
class ActionRawUnitCommand:
    ability_id: int
    target_world_space_pos: Point2D | None = None
    target_unit_tag: int | None = None
    unit_tags: list[int] = field(default_factory=list)
    queue_command: bool = False


@dataclass
class ActionRaw:
    unit_command: ActionRawUnitCommand
