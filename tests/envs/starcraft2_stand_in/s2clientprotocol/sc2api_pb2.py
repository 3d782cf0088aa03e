"""Requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from .raw_pb2 import ActionRaw

Participant, Computer = 1, 2
VeryEasy, Easy, Medium, MediumHard, Hard = 1, 2, 3, 4, 5
Harder, VeryHard, CheatVision, CheatMoney, CheatInsane = 6, 7, 8, 9, 10


@dataclass
class InterfaceOptions:
    raw: bool = False
    score: bool = False


@dataclass
class LocalMap:
    map_path: str
    map_data: bytes


@dataclass
class PlayerSetup:
    type: int
    race: int | None = None
    difficulty: int | None = None


class PlayerSetups(list):
    def add(self, **fields) -> None:
        self.append(PlayerSetup(**fields))


@dataclass
class RequestCreateGame:
    local_map: LocalMap
    realtime: bool
    random_seed: int | None
    player_setup: PlayerSetups = field(default_factory=PlayerSetups)


@dataclass
class RequestJoinGame:
    race: int
    options: InterfaceOptions


@dataclass
class Action:
    action_raw: ActionRaw


@dataclass
class RequestAction:
    actions: list[Action]
