"""Errors of the connection to the game."""


class ConnectionError(Exception):
    """The game does not answer."""


class ProtocolError(Exception):
    """The game answers with an error."""
