"""The game's process and the connection to it."""

from __future__ import annotations

from types import SimpleNamespace as Message
from typing import ClassVar

from .game import KINDS, N_UNIT_TYPES, SIZE, Game
from .lib.protocol import ProtocolError


class Process:
    """A process of the game, which ends with its last reference."""

    running: ClassVar[int] = 0
    started: ClassVar[int] = 0

    def __init__(self) -> None:
        self.controller = Controller()
        Process.running += 1
        Process.started += 1

    def close(self) -> None:
        if self.controller.status != "quit":
            Process.running -= 1
        self.controller.status = "quit"

    def __del__(self) -> None:
        self.close()


class Controller:
    """Requests to the game; an error for one that does not fit the game's status."""

    def __init__(self) -> None:
        self.status = "launched"

    def _expect(self, status: str) -> None:
        if self.status != status:
            raise ProtocolError(f"the status is {self.status!r}, expected {status!r}")

    def create_game(self, request) -> None:
        self._expect("launched")
        self.created = request
        self.status = "init_game"

    def join_game(self, request) -> None:
        self._expect("init_game")
        self.joined = request
        human, computer = self.created.player_setup
        if (human.type, computer.type) != (1, 2) or not request.options.raw:
            raise ProtocolError("expected a participant, a computer and raw observations")
        self.game = Game(self.created.random_seed)
        self.status = "in_game"

    def game_info(self) -> Message:
        self._expect("in_game")
        corners = Message(p0=Message(x=0, y=0), p1=Message(x=SIZE, y=SIZE))
        field = Message(bits_per_pixel=1, data=bytes([255] * (SIZE * SIZE // 8)))
        start = Message(
            playable_area=corners,
            map_size=Message(x=SIZE, y=SIZE),
            pathing_grid=field,
            terrain_height=Message(bits_per_pixel=8, data=bytes(SIZE * SIZE)),
        )
        return Message(start_raw=start)

    def data(self) -> Message:
        """Unit types: the game's, and at the end the map's, one per kind."""
        self._expect("in_game")
        return Message(units=dict.fromkeys(range(N_UNIT_TYPES + len(KINDS))))

    def observe(self) -> Message:
        self._expect("in_game")
        raw = Message(units=self.game.observe())
        return Message(observation=Message(raw_data=raw))

    def actions(self, request) -> None:
        self._expect("in_game")
        for action in request.actions:
            self.game.command(action.action_raw.unit_command)

    def step(self, count: int = 1) -> None:
        self._expect("in_game")
        for _ in range(count):
            self.game.loop()

    def debug(self, commands) -> None:
        self._expect("in_game")
        for command in commands if isinstance(commands, list) else [commands]:
            if command.create_unit:
                self.game.create(command.create_unit)
            elif command.kill_unit:
                self.game.kill(command.kill_unit.tag)
