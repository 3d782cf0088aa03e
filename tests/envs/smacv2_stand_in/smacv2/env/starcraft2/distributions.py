"""Random teams and starting positions; each draws from ``rng`` as SMACv2 does."""

from __future__ import annotations

import random

import numpy as np


class WeightedTeams:
    def __init__(self, config):
        self.config = config
        self.rng = np.random.default_rng()

    def _team(self, size):
        config = self.config
        exceptions = config.get("exception_unit_types", [])
        team: list[str] = []
        while all(kind in exceptions for kind in team):
            kinds = self.rng.choice(config["unit_types"], (size,), p=config["weights"])
            team = [str(kind) for kind in kinds]
            random.shuffle(team)
        return team

    def generate(self):
        n_units, n_enemies = self.config["n_units"], self.config["n_enemies"]
        team = self._team(n_units)
        extra = self._team(n_enemies - n_units) if n_enemies > n_units else []
        enemies = (team + extra)[:n_enemies]
        return {"team_gen": {"ally_team": team, "enemy_team": enemies, "id": 0}}


class Uniform:
    """Positions in a rectangle."""

    def __init__(self, low, high, size):
        self.low, self.high, self.size = low, high, size
        self.rng = np.random.default_rng()

    def generate(self):
        return self.rng.uniform(self.low, self.high, (self.size, 2))


class Reflected:
    """Allies on the left; an enemy opposite each, more enemies anywhere on the right."""

    def __init__(self, config):
        self.config = config
        self.size = np.array([config["map_x"], config["map_y"]])
        n_units, n_enemies = config["n_units"], config["n_enemies"]
        center = self.size[0] / 2
        self.pos_generator = Uniform((0, 0), (center - 1, self.size[1]), n_units)
        if n_enemies > n_units:
            self.enemy_pos_generator = Uniform((center, 0), self.size, n_enemies - n_units)

    def generate(self):
        allies = self.pos_generator.generate()
        enemies = np.stack([self.size[0] - allies[:, 0], allies[:, 1]], -1)
        if self.config["n_enemies"] > len(allies):
            enemies = np.concatenate([enemies, self.enemy_pos_generator.generate()])
        return _starts(allies, enemies[: self.config["n_enemies"]])


class Surrounded:
    """Allies in the center; one to four groups of enemies on different diagonals."""

    def __init__(self, config):
        self.config = config
        self.size = np.array([config["map_x"], config["map_y"]])
        self.rng = np.random.default_rng()

    def generate(self):
        n_enemies = self.config["n_enemies"]
        groups = self.rng.integers(1, 5)
        sizes = self.rng.multinomial(n_enemies, np.full(groups, 1 / groups))
        share = self.rng.uniform(size=groups)[:, None]
        diagonals = self.rng.choice(4, groups, replace=False)
        corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])[diagonals]
        near = self.size / 2 + 2 * (2 * corners - 1)  # two from the center
        positions = share * near + (1 - share) * corners * self.size
        allies = np.tile(self.size / 2, (self.config["n_units"], 1))
        return _starts(allies, np.repeat(positions, sizes, axis=0))


class SurroundedAndReflected:
    def __init__(self, config):
        self.p_threshold = config["p"]
        self.surrounded_distribution = Surrounded(config)
        self.reflect_distribution = Reflected(config)
        self.rng = np.random.default_rng()

    def generate(self):
        surrounded = self.rng.random() > self.p_threshold
        return (
            self.surrounded_distribution if surrounded else self.reflect_distribution
        ).generate()


def _starts(allies, enemies):
    return {
        "ally_start_positions": {"item": allies, "id": 0},
        "enemy_start_positions": {"item": enemies, "id": 0},
    }


DISTRIBUTIONS = {
    "weighted_teams": WeightedTeams,
    "surrounded_and_reflect": SurroundedAndReflected,
}
