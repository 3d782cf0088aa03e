"""A small battle in place of StarCraft II, on an empty field, in steps of 1/22 second.

Units walk, attack the unit that they were told to (the computer's: the nearest one) in range when
their weapon is ready, and leave the field when they die. Medivacs heal; shields recover.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .lib.protocol import ProtocolError
from .lib.units import Protoss, Terran, Zerg

SIZE = 32
N_UNIT_TYPES = 1900  # of the game, without the map's
SPEED = 0.25  # of a step
STOP, MOVE, ATTACK, HEAL = 4, 16, 23, 386  # abilities


class Kind(NamedTuple):
    type: int
    health: float
    shield: float
    damage: float
    cooldown: int
    range: float


# In the order of the map's unit types, which follow the game's.
KINDS = [
    Kind(Zerg.Baneling, 30, 0, 16, 6, 1.0),
    Kind(Protoss.Colossus, 200, 150, 20, 24, 7.0),
    Kind(Zerg.Hydralisk, 80, 0, 12, 13, 5.0),
    Kind(Terran.Marauder, 125, 0, 10, 24, 6.0),
    Kind(Terran.Marine, 45, 0, 6, 14, 5.0),
    Kind(Terran.Medivac, 150, 0, 0, 1, 4.0),
    Kind(Protoss.Stalker, 80, 80, 13, 30, 6.0),
    Kind(Protoss.Zealot, 100, 50, 16, 19, 1.0),
    Kind(Zerg.Zergling, 35, 0, 5, 11, 1.0),
]


@dataclass
class Unit:
    """A unit with the protocol's fields, and what the game knows of it."""

    tag: int
    unit_type: int
    owner: int
    pos: object
    kind: Kind
    delay: int  # steps until it appears
    energy: float = 50.0
    weapon_cooldown: float = 0.0
    hit: int = 1000  # steps since the last hit
    order: object = None
    health: float = field(init=False)
    shield: float = field(init=False)

    def __post_init__(self) -> None:
        self.health = self.health_max = self.kind.health
        self.shield = self.shield_max = self.kind.shield

    def distance(self, pos) -> float:
        return float(np.hypot(self.pos.x - pos.x, self.pos.y - pos.y))


class Game:
    """Units and their orders; random numbers are drawn with the game's seed."""

    spawn_delay = 1  # steps until created units appear
    spawn_interval = 0  # more steps, for each unit that is there already

    def __init__(self, seed: int | None) -> None:
        if seed is not None and not (type(seed) is int and 0 <= seed < 2**32):
            raise ProtocolError(f"random_seed is {seed!r}, expected 32 bits")
        self.seed = seed
        self.dice = np.random.default_rng(seed)
        self.units: dict[int, Unit] = {}
        self.created = 0

    def create(self, request) -> None:
        own = request.owner == 1
        number = request.unit_type - N_UNIT_TYPES
        kinds = {kind.type: kind for kind in KINDS}
        kind = KINDS[number] if own else kinds[request.unit_type]
        for _ in range(request.quantity):
            self.created += 1
            self.units[self.created] = Unit(
                self.created,
                int(request.unit_type),
                request.owner,
                _point(request.pos.x, request.pos.y),
                kind,
                self.spawn_delay + self.spawn_interval * len(self.units),
            )

    def kill(self, tags) -> None:
        for tag in tags:
            self.units.pop(tag, None)

    def observe(self) -> list[Unit]:
        return [copy.copy(unit) for unit in self.units.values() if unit.delay <= 0]

    def command(self, command) -> None:
        if command.ability_id not in (STOP, MOVE, ATTACK, HEAL):
            raise ProtocolError(f"unknown ability {command.ability_id}")
        for tag in command.unit_tags:
            if tag in self.units:  # the game ignores commands for units that died
                self.units[tag].order = command

    def loop(self) -> None:
        for unit in self.units.values():
            unit.hit += 1
            unit.weapon_cooldown = max(0.0, unit.weapon_cooldown - 1)
            if unit.hit > 60:
                unit.shield = min(unit.shield_max, unit.shield + 0.1)
        for unit in list(self.units.values()):
            if unit.delay <= 0 and unit.health > 0:
                self._act(unit)
            unit.delay -= 1
        self.kill([unit.tag for unit in self.units.values() if unit.health <= 0])

    def _act(self, unit: Unit) -> None:
        if unit.owner == 2:
            foes = [other for other in self.units.values() if other.owner == 1 and other.health > 0]
            if foes and unit.kind.damage:
                self._attack(unit, min(foes, key=lambda foe: unit.distance(foe.pos)))
        elif unit.order and unit.order.ability_id == MOVE:
            self._walk(unit, unit.order.target_world_space_pos)
        elif unit.order and unit.order.ability_id in (ATTACK, HEAL):
            target = self.units.get(unit.order.target_unit_tag)
            if target is None:
                unit.order = None
            elif unit.order.ability_id == HEAL:
                self._heal(unit, target)
            else:
                self._attack(unit, target)

    def _attack(self, unit: Unit, target: Unit) -> None:
        if unit.distance(target.pos) > unit.kind.range:
            self._walk(unit, target.pos)
        elif unit.weapon_cooldown == 0:
            damage = unit.kind.damage * self.dice.uniform(0.8, 1.2)
            damage *= 2.0 if unit.owner == 1 else 1.2
            absorbed = min(damage, target.shield)
            target.shield -= absorbed
            target.health = max(0.0, target.health - damage + absorbed)
            target.hit, unit.weapon_cooldown = 0, unit.kind.cooldown

    def _heal(self, unit: Unit, target: Unit) -> None:
        amount = min(0.5, unit.energy, target.health_max - target.health)
        if unit.distance(target.pos) > unit.kind.range:
            self._walk(unit, target.pos)
        elif target.health > 0:
            target.health += amount
            unit.energy -= amount / 3

    def _walk(self, unit: Unit, to) -> None:
        step = np.array([to.x - unit.pos.x, to.y - unit.pos.y])
        length = float(np.linalg.norm(step))
        step *= min(1.0, SPEED / length) if length > 0 else 0.0
        x, y = np.clip([unit.pos.x + step[0], unit.pos.y + step[1]], 0, SIZE)
        unit.pos = _point(x, y)


class _Point(NamedTuple):
    x: float
    y: float
    z: float


def _point(x: float, y: float) -> _Point:
    """A position, with 32 bits per number."""
    return _Point(float(np.float32(x)), float(np.float32(y)), 0.0)
