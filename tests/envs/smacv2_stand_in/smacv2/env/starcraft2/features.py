"""Action masks, observations and states."""

from __future__ import annotations

import random

import numpy as np

from .units import KINDS, MAP_SIZE, TYPES, Unit

UNIT_BITS = 3
STEPS = {2: (0, 1), 3: (0, -1), 4: (1, 0), 5: (-1, 0)}  # north, south, east, west
EPSILON = 1e-7


class Features:
    """What agents observe, and the actions that they may take."""

    def _targets(self, unit: Unit) -> dict[int, Unit]:
        return self.agents if unit.kind == "medivac" else self.enemies

    def _reach(self, unit: Unit) -> float:
        """Range of attacks."""
        return max(KINDS[unit.kind].range, self.min_attack_range) if self.use_unit_ranges else 6

    def _sight(self, unit: Unit) -> float:
        return KINDS[unit.kind].sight if self.use_unit_ranges else 9

    def _in_cone(self, agent_id: int, position: np.ndarray, reach: float) -> bool:
        """Whether a position is in the field of view.

        SMACv2 compares the slopes on the position's side, left or right: a unit that looks straight
        to the left also sees what is to its right.
        """
        offset = position - self.agents[agent_id].position
        if np.hypot(*offset) > reach:
            return False
        (look_x, look_y), side = self.fov_directions[agent_id], 1 if offset[0] > 0 else -1
        slopes = [y / (side * max(side * x, EPSILON)) for x, y in (offset, (look_x, look_y))]
        return abs(np.subtract(*np.arctan(slopes))) < np.pi / self.n_fov_actions

    # Action masks.

    def get_avail_agent_actions(self, agent_id):
        unit = self.agents[agent_id]
        if unit.health <= 0:
            return [1] + [0] * (self.n_actions - 1)
        available = [0] * self.n_actions
        available[1] = 1
        for action, step in STEPS.items():
            position = np.trunc(unit.position + self._move_amount / 2 * np.array(step))
            available[action] = int((position >= 0).all() and (position < MAP_SIZE).all())
        available[6 : self.n_actions_no_attack] = [1] * self.n_fov_actions
        reach = self._reach(unit)
        for index, target in self._targets(unit).items():
            flies_too = unit.kind == target.kind == "medivac"
            near = (
                self._in_cone(agent_id, target.position, reach)
                if self.conic_fov
                else unit.distance(target) <= reach
            )
            if target.health > 0 and not flies_too and near:
                available[self.n_actions_no_attack + index] = 1
        return available

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(agent) for agent in range(self.n_agents)]

    # Observations and state.

    def _type(self, unit: Unit) -> list[float]:
        return [float(unit.kind == kind) for kind in TYPES[self.race]]

    def _shield(self, unit: Unit) -> list[float]:
        return [unit.shield / unit.shield_max] if self.shields else []

    def _direction(self, agent_id: int) -> list[float]:
        return list(self.fov_directions[agent_id]) if self.conic_fov else []

    def _sees(self, agent_id: int, other: Unit) -> bool:
        unit = self.agents[agent_id]
        sight = self._sight(unit)
        if self.conic_fov:
            return self._in_cone(agent_id, other.position, sight)
        return unit.distance(other) < sight

    def _seen(self, unit: Unit, other: Unit, first: float, kind: list[float]) -> list[float]:
        sight = self._sight(unit)
        offset = (other.position - unit.position) / sight
        health = other.health / other.health_max
        return [first, unit.distance(other) / sight, *offset, health, *self._shield(other), *kind]

    def _observe_enemies(self, agent_id: int, available: list[int]) -> np.ndarray:
        unit = self.agents[agent_id]
        features = np.zeros((self.n_enemies, 5 + self.shields + UNIT_BITS), dtype=np.float32)
        for index, enemy in self.enemies.items():
            sees = self._sees(agent_id, enemy)
            if sees and self.first_observers[index] is None:
                # The first agent that sees an enemy shares it with each other one by chance.
                self.first_observers[index] = agent_id
                for other in range(self.n_agents):
                    if other == agent_id or np.random.rand() < self.prob_obs_enemy:
                        self.observed[index, other] = 1
            if not self.observed[index, agent_id]:
                features[:] = 0  # as SMACv2: the enemies before this one are hidden too
            elif sees and enemy.health > 0:
                # A medivac's first feature says whether it can heal the ally of that number.
                first = available[self.n_actions_no_attack + index]
                features[index] = self._seen(unit, enemy, first, self._type(enemy))
        return features

    def _forget(self) -> None:
        """Clear the enemies first seen by dead agents, what dead agents saw, and dead enemies."""
        for agent_id, unit in self.agents.items():
            for index, first in enumerate(self.first_observers):
                if unit.health <= 0 and first == agent_id:
                    self.first_observers[index] = None
                    self.observed[index] = self.observed[:, agent_id] = 0
        for index, unit in self.enemies.items():
            if unit.health <= 0:
                self.first_observers[index] = None
                self.observed[index] = 0

    def get_obs_agent(self, agent_id):
        unit = self.agents[agent_id]
        if unit.health <= 0:
            return np.zeros(self.get_obs_size(), dtype=np.float32)
        available = self.get_avail_agent_actions(agent_id)
        features = [*available[2:6], *self._observe_enemies(agent_id, available).flatten()]
        for index, other in self.agents.items():
            if index != agent_id:
                kind = self._type(other) if self.observe_types else [0.0] * UNIT_BITS
                seen = self._seen(unit, other, 1, kind)
                visible = other.health > 0 and self._sees(agent_id, other)
                features += seen if visible else [0.0] * len(seen)
        features += [unit.health / unit.health_max, *self._shield(unit)]
        features += list(unit.position / MAP_SIZE) if self.obs_own_pos else []
        features += self._direction(agent_id) + self._type(unit)
        return np.array(features, dtype=np.float32)

    def get_obs(self):
        agents = list(range(self.n_agents))
        random.shuffle(agents)
        observations: list = [None] * self.n_agents
        for agent in agents:
            observations[agent] = self.get_obs_agent(agent)
        return observations

    def _state(self, unit: Unit, own: list[float], direction: list[float]) -> list[float]:
        position = (unit.position - MAP_SIZE / 2) / MAP_SIZE
        features = [unit.health / unit.health_max, *own, *position, *self._shield(unit)]
        features += direction + self._type(unit)
        return features if unit.health > 0 else [0.0] * len(features)

    def get_state(self):
        state: list[float] = []
        for index, unit in self.agents.items():
            state += self._state(unit, [unit.cooldown], self._direction(index))
        for unit in self.enemies.values():
            state += self._state(unit, [], [])
        return np.append(state, self.last_action).astype(np.float32)

    def get_obs_size(self):
        own = 1 + self.shields + 2 * (self.obs_own_pos + self.conic_fov) + UNIT_BITS
        return 4 + (self.n_enemies + self.n_agents - 1) * (5 + self.shields + UNIT_BITS) + own

    def get_state_size(self):
        allies = 4 + self.shields + 2 * self.conic_fov + UNIT_BITS + self.n_actions
        return self.n_agents * allies + self.n_enemies * (3 + self.shields + UNIT_BITS)

    def get_env_info(self):
        types = [f"type_{bit}" for bit in range(UNIT_BITS)]
        shield = ["shield"] * self.shields
        direction = ["fov_x", "fov_y"] if self.conic_fov else []
        position = ["rel_x", "rel_y"]
        return {
            "state_shape": self.get_state_size(),
            "obs_shape": self.get_obs_size(),
            "cap_shape": UNIT_BITS,
            "n_actions": self.n_actions,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
            "agent_features": ["health", "energy/cooldown", *position, *shield, *direction, *types],
            "enemy_features": ["health", *position, *shield, *types],
        }
