"""How to start the game."""

from __future__ import annotations

from ..controller import Process


class SC2LaunchError(Exception):
    """The game is not installed, or does not start."""


class RunConfig:
    def __init__(self, version: str | None) -> None:
        self.version = version or "latest"

    def map_data(self, path: str) -> bytes:
        return path.encode()

    def start(self, *, window_size: tuple[int, int], want_rgb: bool) -> Process:
        return Process()


def get(version: str | None = None) -> RunConfig:
    """The installed game."""
    return RunConfig(version)
