"""Units and their types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MAP_SIZE = 32


class Kind(NamedTuple):
    health: float
    shield: float
    damage: float  # of a step; negative: healing
    range: float  # of attacks, before the minimum
    sight: float


KINDS = {
    "stalker": Kind(80, 80, 7, 6, 10),
    "zealot": Kind(100, 50, 10, 0.1, 9),
    "colossus": Kind(200, 150, 12, 7, 10),
    "marine": Kind(45, 0, 5, 5, 9),
    "marauder": Kind(125, 0, 7, 6, 10),
    "medivac": Kind(150, 0, -8, 4, 11),
    "zergling": Kind(35, 0, 5, 0.1, 8),
    "baneling": Kind(30, 0, 16, 0.25, 8),
    "hydralisk": Kind(80, 0, 7, 5, 9),
}
# In the order of the type features, by the map's race.
TYPES = {
    "P": ("stalker", "zealot", "colossus"),
    "T": ("marine", "marauder", "medivac"),
    "Z": ("zergling", "hydralisk", "baneling"),
}


@dataclass
class Unit:
    kind: str
    position: np.ndarray

    def __post_init__(self) -> None:
        self.place(self.position)
        # Divided by the type's maximum: cooldown of the weapon; a medivac's energy, 50 of 200.
        self.cooldown = 0.25 if self.kind == "medivac" else 0.0
        self.health, self.shield = self.health_max, self.shield_max

    def place(self, position: np.ndarray) -> None:
        """Move to a position, rounded to 32 bits as in the game's protocol."""
        self.position = np.asarray(position, np.float32).astype(float)

    @property
    def health_max(self) -> float:
        return KINDS[self.kind].health

    @property
    def shield_max(self) -> float:
        return KINDS[self.kind].shield

    def distance(self, other: Unit) -> float:
        return float(np.hypot(*(self.position - other.position)))

    def suffer(self, damage: float) -> None:
        absorbed = min(self.shield, damage) if damage > 0 else 0.0
        self.shield -= absorbed
        self.health = float(np.clip(self.health - damage + absorbed, 0, self.health_max))
