"""A game with random teams and starting positions."""

from __future__ import annotations

from .distributions import DISTRIBUTIONS
from .starcraft2 import CannotResetException, StarCraft2Env


class StarCraftCapabilityEnvWrapper:
    """Draw teams and starting positions per episode."""

    def __init__(self, **kwargs):
        self.distribution_config = config = kwargs["capability_config"]
        self.env_key_to_distribution_map = {}
        for key, part in config.items():
            if key not in ("n_units", "n_enemies"):
                part |= {
                    "env_key": key,
                    "n_units": config["n_units"],
                    "n_enemies": config["n_enemies"],
                }
                self.env_key_to_distribution_map[key] = DISTRIBUTIONS[part["dist_type"]](part)
        self.env = StarCraft2Env(**kwargs)

    def reset(self):
        try:
            config = {}
            for distribution in self.env_key_to_distribution_map.values():
                config |= distribution.generate()
            return self.env.reset(config)
        except CannotResetException:
            self.reset()  # returns None, as SMACv2

    def __getattr__(self, name):
        return getattr(self.env, name)

    def step(self, actions):
        return self.env.step(actions)

    def seed(self):
        raise NotImplementedError  # as SMACv2; the game's `seed` returns it
