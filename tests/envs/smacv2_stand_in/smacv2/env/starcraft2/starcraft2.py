"""A game: its process, episodes and battles."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .features import STEPS, Features
from .units import KINDS, MAP_SIZE, Unit


class CannotResetException(Exception):
    """Units did not appear."""


class ProtocolError(Exception):
    """Stand-in for pysc2's error: the connection to the game is lost."""


class SC2LaunchError(Exception):
    """Stand-in for pysc2's error: the game did not start."""


class StarCraft2Env(Features):
    """One game. ``step_mul``, ``difficulty`` and ``replay_dir`` have no effect."""

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
        num_fov_actions=12,
        use_unit_ranges=False,
        min_attack_range=2,
        capability_config={},  # noqa: B006
        replay_dir="",
        prob_obs_enemy=1.0,
    ):
        self.race = {"10gen_protoss": "P", "10gen_terran": "T", "10gen_zerg": "Z"}[map_name]
        self.map_name = map_name
        self.episode_limit = 200
        self.continuing_episode = continuing_episode
        self.obs_own_pos = obs_own_pos
        self.conic_fov = conic_fov
        self.n_fov_actions = num_fov_actions if conic_fov else 0
        self.use_unit_ranges = use_unit_ranges
        self.min_attack_range = min_attack_range
        self.prob_obs_enemy = prob_obs_enemy
        self.n_agents = capability_config["team_gen"]["n_units"]
        self.n_enemies = capability_config["team_gen"]["n_enemies"]
        self.observe_types = capability_config["team_gen"]["observe"]
        self.shields = int(self.race == "P")
        targets = max(self.n_agents, self.n_enemies) if self.race == "T" else self.n_enemies
        self.n_actions_no_attack = 6 + self.n_fov_actions
        self.n_actions = self.n_actions_no_attack + targets
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

    def seed(self):
        return self._seed

    # Episodes.

    def reset(self, episode_config={}):  # noqa: B006
        self._episode_steps = 0
        if self._episode_count == 0:
            self._launch()
        self.last_action = np.zeros((self.n_agents, self.n_actions))
        self.observed = np.zeros((self.n_enemies, self.n_agents))
        self.first_observers: list = [None] * self.n_enemies
        self.fov_directions = np.tile([1.0, 0.0], (self.n_agents, 1))
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
            [Unit(kind, position) for kind, position in zip(*side, strict=True)] for side in sides
        )
        allies.sort(key=lambda unit: (unit.kind, *unit.position))
        self.agents = dict(enumerate(allies))
        self.enemies = dict(enumerate(enemies))
        if self._episode_count == 0:
            self.max_reward += sum(unit.health_max + unit.shield_max for unit in enemies)

    def step(self, actions):
        actions = [int(action) for action in actions]
        self.last_action = np.eye(self.n_actions)[actions]
        for agent, action in enumerate(actions):
            available = self.get_avail_agent_actions(agent)
            assert available[action] == 1, f"Agent {agent} cannot perform action {action}"
            if 6 <= action < self.n_actions_no_attack:
                angle = 2 * np.pi * (action - 6) / self.n_fov_actions
                self.fov_directions[agent] = np.cos(angle), np.sin(angle)
        before = self._points(self.enemies), self._alive(self.enemies)
        try:
            self._simulate(actions)
        except ProtocolError:
            self.full_restart()
            return 0, True, {}
        self._episode_steps += 1
        self._forget()
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
            elif action >= self.n_actions_no_attack:
                damage.append((unit, self._targets(unit)[action - self.n_actions_no_attack]))
        for enemy in self.enemies.values():
            near = [unit for unit in self.agents.values() if unit.health > 0]
            if enemy.health <= 0 or not near or enemy.kind == "medivac":
                continue
            target = min(near, key=enemy.distance)
            if enemy.distance(target) <= max(KINDS[enemy.kind].range, 2):
                damage.append((enemy, target))
            else:
                step = target.position - enemy.position
                self._walk(enemy, self._move_amount * step / np.abs(step).sum())
        for attacker, target in damage:
            if target.health > 0:
                target.suffer(KINDS[attacker.kind].damage * self._dice.uniform(0.8, 1.2))

    def _walk(self, unit, step):
        unit.place(np.clip(unit.position + step, 0, MAP_SIZE))

    @staticmethod
    def _points(side):
        return sum(unit.health + unit.shield for unit in side.values())

    @staticmethod
    def _alive(side):
        return sum(unit.health > 0 for unit in side.values())

    @staticmethod
    def _fighters(side):
        return sum(unit.health > 0 and unit.kind != "medivac" for unit in side.values())

    def get_total_actions(self):
        return self.n_actions

    def render(self, mode="human"):
        image = np.full((8 * MAP_SIZE, 8 * MAP_SIZE, 3), 255, dtype=np.uint8)
        for side, color in ((self.agents, (40, 90, 220)), (self.enemies, (220, 60, 40))):
            for unit in side.values():
                x, y = np.clip(unit.position * 8, 4, 8 * MAP_SIZE - 4).astype(int)
                image[y - 4 : y + 4, x - 4 : x + 4] = color
        return image if mode == "rgb_array" else None
