"""Numbers of the game's unit types."""

from __future__ import annotations

import enum


class Neutral(enum.IntEnum):
    MineralField = 341


class Protoss(enum.IntEnum):
    Colossus = 4
    Zealot = 73
    Stalker = 74


class Terran(enum.IntEnum):
    Marine = 48
    Marauder = 51
    Medivac = 54


class Zerg(enum.IntEnum):
    Baneling = 9
    Zergling = 105
    Hydralisk = 107
