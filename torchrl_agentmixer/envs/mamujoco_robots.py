"""Robots of MA-MuJoCo: rewards, termination and states of a batch, as in gymnasium."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Fields = Mapping[str, np.ndarray]


class Robot:
    """A robot of gymnasium, computed for a batch from fields of ``MjData`` ``[num_envs, ...]``.

    Args:
        simulator: gymnasium's robot, whose weights and limits count.
        categories: what agents observe of joints: fields of ``MjData``, or of ``categories``.
    """

    fields: tuple[str, ...] = ("qpos", "qvel")
    categories: tuple[str, ...] = ("qpos", "qvel")  # by default, of an agent's own joints
    max_steps = 1000  # time limit of an episode
    hidden = 1  # first positions, which the state excludes
    normal = False  # whether the velocities of a reset are normal; uniform otherwise

    def __init__(self, simulator: Any, categories: Iterable[str] = ()) -> None:
        self.simulator = simulator
        self._more = sorted(set(categories) - set(self.categories))
        self.fields = tuple(dict.fromkeys((*self.fields, *self._more)))

    def initial(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sample positions and velocities of a reset."""
        robot, scale = self.simulator, self.simulator._reset_noise_scale
        qpos = robot.init_qpos + random.uniform(-scale, scale, robot.model.nq)
        size = robot.model.nv
        noise = (
            scale * random.standard_normal(size)
            if self.normal
            else random.uniform(-scale, scale, size)
        )
        return qpos, robot.init_qvel + noise

    def position(self, fields: Fields) -> np.ndarray:
        """Coordinate ``[num_envs]`` whose velocity is rewarded."""
        return fields["qpos"][:, 0].copy()

    def healthy(self, fields: Fields) -> np.ndarray:
        """Whether each robot is healthy, ``[num_envs]``; the others terminate."""
        return np.ones(len(fields["qpos"]), dtype=bool)

    def costs(self, fields: Fields, actions: np.ndarray) -> np.ndarray:
        """Cost of each robot's control and contacts, ``[num_envs]``."""
        return self.simulator._ctrl_cost_weight * np.square(actions).sum(1)

    def reward(
        self, fields: Fields, actions: np.ndarray, velocity: np.ndarray, healthy: np.ndarray
    ) -> np.ndarray:
        """Rewards, ``[num_envs]``."""
        alive = healthy * getattr(self.simulator, "_healthy_reward", 0.0)
        forward = velocity * self.simulator._forward_reward_weight
        return forward + alive - self.costs(fields, actions)

    def state(self, fields: Fields) -> list[np.ndarray]:
        """Consecutive parts of the state, ``[num_envs, ...]``."""
        return [fields["qpos"][:, self.hidden :], fields["qvel"]]

    def observed(self, fields: Fields) -> list[np.ndarray]:
        """What agents may observe that the state lacks, ``[num_envs, ...]``."""
        return [fields["qpos"], fields["qvel"], *(fields[name] for name in self._more)]

    def row(self, fields: Fields) -> np.ndarray:
        """The state, then ``observed``, as one row per robot, ``[num_envs, columns]``."""
        parts = (*self.state(fields), *self.observed(fields))
        return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)


class HalfCheetah(Robot):
    """Robot that does not terminate."""

    normal = True


class CoupledHalfCheetah(HalfCheetah):
    """Two half cheetahs that a tendon connects; their mean reward."""

    fields = ("qpos", "qvel", "ten_J", "ten_length", "ten_velocity")
    categories = fields

    def position(self, fields: Fields) -> np.ndarray:
        return fields["qpos"][:, [0, 9]].mean(1)

    def costs(self, fields: Fields, actions: np.ndarray) -> np.ndarray:
        return super().costs(fields, actions) / 2

    def state(self, fields: Fields) -> list[np.ndarray]:
        qpos, jacobian = fields["qpos"], self.jacobian(fields)[:, [0, 1, 9, 10]]
        tendon = [jacobian, fields["ten_length"], fields["ten_velocity"]]
        return [qpos[:, 1:9], qpos[:, 10:], fields["qvel"], *tendon]

    def jacobian(self, fields: Fields) -> np.ndarray:
        """Jacobian of the tendon, ``[num_envs, nv]``; the newer versions of MuJoCo omit zeros."""
        values, model = fields["ten_J"].reshape(len(fields["ten_J"]), -1), self.simulator.model
        if values.shape[1] == model.nv:
            return values
        dense = np.zeros((len(values), model.nv))
        dense[:, model.ten_J_colind] = values
        return dense


class Swimmer(Robot):
    """Robot of segments in a fluid, also of many segments."""

    hidden = 2


class Hopper(Robot):
    """Robot on one leg."""

    def healthy(self, fields: Fields) -> np.ndarray:
        low, high = self.simulator._healthy_state_range
        qpos, qvel = fields["qpos"], fields["qvel"]
        bounded = [((low < x) & (x < high)).all(1) for x in (qpos[:, 2:], qvel)]
        return bounded[0] & bounded[1] & self._upright(qpos)

    def _upright(self, qpos: np.ndarray) -> np.ndarray:
        low, high = self.simulator._healthy_z_range
        left, right = self.simulator._healthy_angle_range
        z, angle = qpos[:, 1], qpos[:, 2]
        return (low < z) & (z < high) & (left < angle) & (angle < right)

    def state(self, fields: Fields) -> list[np.ndarray]:
        return [fields["qpos"][:, self.hidden :], fields["qvel"].clip(-10, 10)]


class Walker2d(Hopper):
    """Robot on two legs in a plane."""

    def healthy(self, fields: Fields) -> np.ndarray:
        return self._upright(fields["qpos"])


class Ant(Robot):
    """Robot on four legs, which observes clipped contact forces."""

    fields = ("qpos", "qvel", "xpos", "cfrc_ext")
    categories = ("qpos", "qvel", "cfrc_ext")
    hidden = 2
    normal = True

    def position(self, fields: Fields) -> np.ndarray:
        return fields["xpos"][:, self.simulator._main_body, 0].copy()

    def healthy(self, fields: Fields) -> np.ndarray:
        low, high = self.simulator._healthy_z_range
        qpos, qvel = fields["qpos"], fields["qvel"]
        finite = np.isfinite(qpos).all(1) & np.isfinite(qvel).all(1)
        return finite & (low <= qpos[:, 2]) & (qpos[:, 2] <= high)

    def costs(self, fields: Fields, actions: np.ndarray) -> np.ndarray:
        forces = self._forces(fields).reshape(len(actions), -1)
        contact = self.simulator._contact_cost_weight * np.square(forces).sum(1)
        return super().costs(fields, actions) + contact

    def state(self, fields: Fields) -> list[np.ndarray]:
        return [*super().state(fields), self._forces(fields)[:, 1:]]

    def _forces(self, fields: Fields) -> np.ndarray:
        return fields["cfrc_ext"].clip(*self.simulator._contact_force_range)


class Humanoid(Robot):
    """Robot with arms and legs, which observes inertias, forces and velocities of its bodies."""

    fields = ("qpos", "qvel", "ctrl", "xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")
    categories = ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")
    hidden = 2

    def position(self, fields: Fields) -> np.ndarray:
        masses = self.simulator.model.body_mass
        return np.einsum("b,nbj->nj", masses, fields["xipos"])[:, 0] / masses.sum()

    def healthy(self, fields: Fields) -> np.ndarray:
        low, high = self.simulator._healthy_z_range
        return (low < fields["qpos"][:, 2]) & (fields["qpos"][:, 2] < high)

    def costs(self, fields: Fields, actions: np.ndarray) -> np.ndarray:
        weight, bounds = self._contact_cost
        forces = fields["cfrc_ext"].reshape(len(actions), -1)
        contact = weight * np.square(forces).sum(1)
        return super().costs(fields, fields["ctrl"]) + contact.clip(*bounds)

    @property
    def _contact_cost(self) -> tuple[float, tuple[float, float]]:
        return self.simulator._contact_cost_weight, self.simulator._contact_cost_range

    def state(self, fields: Fields) -> list[np.ndarray]:
        bodies = [fields[name][:, 1:] for name in ("cinert", "cvel")]
        forces = [fields["qfrc_actuator"][:, 6:], fields["cfrc_ext"][:, 1:]]
        return [*super().state(fields), *bodies, *forces]


class HumanoidStandup(Humanoid):
    """Robot that lies on the ground and is rewarded for its height; it does not terminate."""

    healthy = Robot.healthy

    @property
    def _contact_cost(self) -> tuple[float, tuple[float, float]]:
        return self.simulator._impact_cost_weight, self.simulator._impact_cost_range

    def reward(
        self, fields: Fields, actions: np.ndarray, velocity: np.ndarray, healthy: np.ndarray
    ) -> np.ndarray:
        height = fields["qpos"][:, 2] / self.simulator.model.opt.timestep
        return height - self.costs(fields, actions) + 1
