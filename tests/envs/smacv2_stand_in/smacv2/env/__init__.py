"""Stand-in for ``smacv2.env``, with the maps ``10gen_protoss``, ``10gen_terran``, ``10gen_zerg``.

As in SMACv2 (https://github.com/oxwhirl/smacv2): names, signatures, return values and errors; sizes
and order of observations and states; action masks; ends of battles and ``info``; failed resets,
crashes of the game, and sources of random numbers. The game is replaced by units that move and
attack on an empty field of 32x32, and tests raise the errors of a lost connection.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

MAP_SIZE = 32
SIGHT = 9.0
UNIT_BITS = 3
ACTIONS_NO_ATTACK = 6
STEPS = {2: (0, 1), 3: (0, -1), 4: (1, 0), 5: (-1, 0)}  # north, south, east, west
# Health, shield, damage of a step and range.
UNITS = {
    "stalker": (80, 80, 7, 6),
    "zealot": (100, 50, 10, 2),
    "colossus": (200, 150, 12, 7),
    "marine": (45, 0, 5, 5),
    "marauder": (125, 0, 7, 6),
    "medivac": (150, 0, -8, 4),
    "zergling": (35, 0, 5, 2),
    "baneling": (30, 0, 16, 2),
    "hydralisk": (80, 0, 7, 5),
}


class CannotResetException(Exception):
    """Units did not appear."""


class ProtocolError(Exception):
    """Stand-in for pysc2's error: the connection to the game is lost."""


class SC2LaunchError(Exception):
    """Stand-in for pysc2's error: the game did not start."""


@dataclass
class Unit:
    kind: str
    position: np.ndarray
    health: float
    shield: float

    @property
    def maximum(self) -> tuple[int, int]:
        return UNITS[self.kind][:2]

    @property
    def damage(self) -> float:
        return UNITS[self.kind][2]

    @property
    def range(self) -> float:
        return UNITS[self.kind][3]

    def distance(self, other: Unit) -> float:
        return float(np.linalg.norm(self.position - other.position))

    def suffer(self, damage: float) -> None:
        absorbed = min(self.shield, damage) if damage > 0 else 0.0
        self.shield -= absorbed
        self.health = float(np.clip(self.health - damage + absorbed, 0, self.maximum[0]))


class StarCraft2Env:
    """One game."""

    games_running: ClassVar[int] = 0
    games_started: ClassVar[int] = 0

    def __init__(
        self,
        map_name="8m",
        step_mul=8,
        move_amount=2,
        difficulty="7",
        seed=None,
        continuing_episode=False,
        obs_own_pos=False,
        conic_fov=False,
        use_unit_ranges=False,
        min_attack_range=2,
        capability_config={},  # noqa: B006
        replay_dir="",
    ):
        race = {"10gen_protoss": "P", "10gen_terran": "T", "10gen_zerg": "Z"}[map_name]
        self.map_name = map_name
        self.episode_limit = 200
        self.continuing_episode = continuing_episode
        self.obs_own_pos = obs_own_pos
        self.n_agents = capability_config["team_gen"]["n_units"]
        self.n_enemies = capability_config["team_gen"]["n_enemies"]
        self.kinds = capability_config["team_gen"]["unit_types"]
        self.shields = int(race == "P")
        self.has_medivacs = race == "T"
        targets = max(self.n_agents, self.n_enemies) if self.has_medivacs else self.n_enemies
        self.n_actions = ACTIONS_NO_ATTACK + targets
        self.max_reward = self.n_enemies * 10 + 200
        self.agents: dict[int, Unit] = {}
        self.enemies: dict[int, Unit] = {}
        self.last_action = np.zeros((self.n_agents, self.n_actions))
        self.force_restarts = self.timeouts = self.battles_won = self.battles_game = 0
        self._move_amount = move_amount
        self._seed = seed
        self._sc2_proc = None
        self._episode_count = self._episode_steps = 0

    # The game's process.

    def _launch(self):
        self._end_process()
        self._sc2_proc = object()
        self._dice = np.random.default_rng(self._seed)  # random numbers of the game
        StarCraft2Env.games_running += 1
        StarCraft2Env.games_started += 1

    def _end_process(self):
        if self._sc2_proc is not None:
            StarCraft2Env.games_running -= 1
        self._sc2_proc = None

    def full_restart(self):
        self._launch()
        self.force_restarts += 1

    def close(self):
        self._end_process()

    # Episodes.

    def reset(self, episode_config={}):  # noqa: B006
        self._episode_steps = 0
        if self._episode_count == 0:
            self._launch()
        self.last_action = np.zeros((self.n_agents, self.n_actions))
        try:
            self._spawn(episode_config)
        except ProtocolError:
            self.full_restart()
        return self.get_obs(), self.get_state()

    def _spawn(self, config):
        team = config["team_gen"]
        sides = (
            (team["ally_team"], config["ally_start_positions"]["item"]),
            (team["enemy_team"], config["enemy_start_positions"]["item"]),
        )
        allies, enemies = (
            {
                i: Unit(kind, np.array(position, float), *map(float, UNITS[kind][:2]))
                for i, (kind, position) in enumerate(zip(*side, strict=True))
            }
            for side in sides
        )
        self.agents = dict(enumerate(sorted(allies.values(), key=lambda unit: unit.kind)))
        self.enemies = enemies
        if self._episode_count == 0:
            self.max_reward += sum(sum(unit.maximum) for unit in enemies.values())

    def step(self, actions):
        actions = [int(action) for action in actions]
        self.last_action = np.eye(self.n_actions)[actions]
        for agent, action in enumerate(actions):
            available = self.get_avail_agent_actions(agent)
            assert available[action] == 1, f"Agent {agent} cannot perform action {action}"
        before = self._points(self.enemies), self._alive(self.enemies)
        try:
            self._simulate(actions)
        except ProtocolError:
            self.full_restart()
            return 0, True, {}
        self._episode_steps += 1
        allies, enemies = self._alive(self.agents), self._alive(self.enemies)
        reward = max(0.0, before[0] - self._points(self.enemies) + 10 * (before[1] - enemies))
        info = {
            "battle_won": False,
            "dead_allies": self.n_agents - allies,
            "dead_enemies": self.n_enemies - enemies,
        }
        lost, won = (self._fighters(side) == 0 for side in (self.agents, self.enemies))
        terminated = lost or won
        if won and not lost:
            info["battle_won"] = True
            self.battles_won += 1
            reward += 200
        elif not terminated and self._episode_steps >= self.episode_limit:
            terminated = True
            if self.continuing_episode:
                info["episode_limit"] = True
            self.timeouts += 1
        if terminated:
            self._episode_count += 1
            self.battles_game += 1
        return reward / (self.max_reward / 20), terminated, info

    def _simulate(self, actions):
        damage = []
        for agent, action in enumerate(actions):
            unit = self.agents[agent]
            if action in STEPS:
                self._walk(unit, self._move_amount * np.array(STEPS[action]))
            elif action >= ACTIONS_NO_ATTACK:
                damage.append((unit, self._targets(unit)[action - ACTIONS_NO_ATTACK]))
        for enemy in self.enemies.values():
            near = [unit for unit in self.agents.values() if unit.health > 0]
            if enemy.health <= 0 or not near or enemy.kind == "medivac":
                continue
            target = min(near, key=enemy.distance)
            if enemy.distance(target) <= enemy.range:
                damage.append((enemy, target))
            else:
                step = target.position - enemy.position
                self._walk(enemy, self._move_amount * step / np.abs(step).sum())
        for attacker, target in damage:
            if target.health > 0:
                target.suffer(attacker.damage * self._dice.uniform(0.8, 1.2))

    def _walk(self, unit, step):
        unit.position = np.clip(unit.position + step, 0, MAP_SIZE)

    @staticmethod
    def _points(side):
        return sum(unit.health + unit.shield for unit in side.values())

    @staticmethod
    def _alive(side):
        return sum(unit.health > 0 for unit in side.values())

    @staticmethod
    def _fighters(side):
        return sum(unit.health > 0 and unit.kind != "medivac" for unit in side.values())

    # Action masks.

    def _targets(self, unit):
        return self.agents if unit.kind == "medivac" else self.enemies

    def get_avail_agent_actions(self, agent_id):
        unit = self.agents[agent_id]
        if unit.health <= 0:
            return [1] + [0] * (self.n_actions - 1)
        available = [0] * self.n_actions
        available[1] = 1
        for action, step in STEPS.items():
            position = unit.position + self._move_amount / 2 * np.array(step)
            available[action] = int((position >= 0).all() and (position < MAP_SIZE).all())
        for index, target in self._targets(unit).items():
            flies_too = unit.kind == target.kind == "medivac"
            if target.health > 0 and not flies_too and unit.distance(target) <= unit.range:
                available[ACTIONS_NO_ATTACK + index] = 1
        return available

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(agent) for agent in range(self.n_agents)]

    # Observations and state.

    def _features(self, unit, origin, scale):
        """Relative position, health, shield and type."""
        x, y = (unit.position - origin) / scale
        health, shield = unit.maximum
        shields = [unit.shield / shield] if self.shields else []
        return [x, y, unit.health / health, *shields, *self._type(unit)]

    def _type(self, unit):
        return [float(unit.kind == kind) for kind in self.kinds]

    def get_obs_agent(self, agent_id):
        unit = self.agents[agent_id]
        if unit.health <= 0:
            return np.zeros(self.get_obs_size(), dtype=np.float32)
        available = self.get_avail_agent_actions(agent_id)
        features = [*available[2:6]]
        others = [other for i, other in self.agents.items() if i != agent_id]
        for index, enemy in self.enemies.items():
            np.random.rand()  # SMACv2 draws a number per enemy; by default all are visible
            attackable = available[ACTIONS_NO_ATTACK + index] * (unit.kind != "medivac")
            features += self._seen(unit, enemy, attackable)
        for other in others:
            features += self._seen(unit, other, 1)
        health, shield = unit.maximum
        features += [unit.health / health] + ([unit.shield / shield] if self.shields else [])
        features += list(unit.position / MAP_SIZE) if self.obs_own_pos else []
        return np.array([*features, *self._type(unit)], dtype=np.float32)

    def _seen(self, unit, other, first):
        distance = unit.distance(other)
        features = [first, distance / SIGHT, *self._features(other, unit.position, SIGHT)]
        return features if other.health > 0 and distance < SIGHT else [0.0] * len(features)

    def get_obs(self):
        agents = list(range(self.n_agents))
        random.shuffle(agents)
        observations: list = [None] * self.n_agents
        for agent in agents:
            observations[agent] = self.get_obs_agent(agent)
        return observations

    def get_state(self):
        center = np.full(2, MAP_SIZE / 2)
        state: list[float] = []
        for unit in self.agents.values():
            features = [0.0, *self._features(unit, center, MAP_SIZE)]  # first: cooldown
            state += features if unit.health > 0 else [0.0] * len(features)
        for unit in self.enemies.values():
            features = self._features(unit, center, MAP_SIZE)
            state += features if unit.health > 0 else [0.0] * len(features)
        return np.append(state, self.last_action).astype(np.float32)

    def get_obs_size(self):
        own = 1 + self.shields + 2 * self.obs_own_pos + UNIT_BITS
        return 4 + (self.n_enemies + self.n_agents - 1) * (5 + self.shields + UNIT_BITS) + own

    def get_state_size(self):
        allies = self.n_agents * (4 + self.shields + UNIT_BITS + self.n_actions)
        return allies + self.n_enemies * (3 + self.shields + UNIT_BITS)

    def get_total_actions(self):
        return self.n_actions

    def get_env_info(self):
        return {
            "state_shape": self.get_state_size(),
            "obs_shape": self.get_obs_size(),
            "n_actions": self.n_actions,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def render(self, mode="human"):
        image = np.full((8 * MAP_SIZE, 8 * MAP_SIZE, 3), 255, dtype=np.uint8)
        for side, color in ((self.agents, (40, 90, 220)), (self.enemies, (220, 60, 40))):
            for unit in side.values():
                x, y = np.clip(unit.position * 8, 4, 8 * MAP_SIZE - 4).astype(int)
                image[y - 4 : y + 4, x - 4 : x + 4] = color
        return image if mode == "rgb_array" else None


class StarCraftCapabilityEnvWrapper:
    """A game with random teams and starting positions per episode."""

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


class WeightedTeams:
    def __init__(self, config):
        self.config = config
        self.rng = np.random.default_rng()

    def _team(self, size):
        config = self.config
        exceptions = config.get("exception_unit_types", [])
        team: list[str] = []
        while all(kind in exceptions for kind in team):
            team = [
                str(k) for k in self.rng.choice(config["unit_types"], size, p=config["weights"])
            ]
        random.shuffle(team)
        return team

    def generate(self):
        n_units, n_enemies = self.config["n_units"], self.config["n_enemies"]
        team = self._team(n_units)
        extra = self._team(n_enemies - n_units) if n_enemies > n_units else []
        enemies = (team + extra)[:n_enemies]
        return {"team_gen": {"ally_team": team, "enemy_team": enemies, "id": 0}}


class Uniform:
    def __init__(self, size):
        self.size = size
        self.rng = np.random.default_rng()

    def generate(self):
        return self.rng.uniform((0, 0), (MAP_SIZE / 2 - 1, MAP_SIZE), (self.size, 2))


class Reflected:
    def __init__(self, config):
        self.config = config
        self.pos_generator = Uniform(max(config["n_units"], config["n_enemies"]))

    def generate(self):
        positions = self.pos_generator.generate()
        mirrored = np.stack([MAP_SIZE - positions[:, 0], positions[:, 1]], -1)
        allies, enemies = positions[: self.config["n_units"]], mirrored[: self.config["n_enemies"]]
        return {
            "ally_start_positions": {"item": allies},
            "enemy_start_positions": {"item": enemies},
        }


class Surrounded:
    def __init__(self, config):
        self.config = config
        self.rng = np.random.default_rng()

    def generate(self):
        allies = np.full((self.config["n_units"], 2), MAP_SIZE / 2)
        corners = self.rng.integers(0, 2, (self.config["n_enemies"], 2)) * MAP_SIZE
        enemies = MAP_SIZE / 2 + (corners - MAP_SIZE / 2) * self.rng.uniform(0.2, 1.0)
        return {
            "ally_start_positions": {"item": allies},
            "enemy_start_positions": {"item": enemies},
        }


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


DISTRIBUTIONS = {
    "weighted_teams": WeightedTeams,
    "surrounded_and_reflect": SurroundedAndReflected,
}
