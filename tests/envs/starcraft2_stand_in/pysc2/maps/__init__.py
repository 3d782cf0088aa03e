"""Maps by name."""

from .lib import get

__all__ = ["get"]
