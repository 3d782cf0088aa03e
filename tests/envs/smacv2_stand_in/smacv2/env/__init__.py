"""Stand-in for ``smacv2.env``, with the maps ``10gen_protoss``, ``10gen_terran``, ``10gen_zerg``.

As in SMACv2 (https://github.com/oxwhirl/smacv2): names, defaults, return values and errors; random
teams and starting positions; observations, states and action masks; rewards, ends of battles and
``info``; failed resets, crashes of the game, and sources of random numbers.
``tests/envs/test_smacv2_real.py`` compares them. The game is replaced by units that move and attack
on an empty field of 32x32, and tests raise the errors of a lost connection.
"""

from .starcraft2.starcraft2 import (
    CannotResetException,
    ProtocolError,
    SC2LaunchError,
    StarCraft2Env,
)
from .starcraft2.wrapper import StarCraftCapabilityEnvWrapper

__all__ = [
    "CannotResetException",
    "ProtocolError",
    "SC2LaunchError",
    "StarCraft2Env",
    "StarCraftCapabilityEnvWrapper",
]
