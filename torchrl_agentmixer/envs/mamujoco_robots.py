"""Robots of MA-MuJoCo: rewards, termination and states of a batch, as in gymnasium."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Fields = Mapping[str, np.ndarray]


class Robot:
    """A robot of gymnasium, computed for a batch from fields of ``MjData`` ``[num_envs, ...]``.

    Args:
        simulator: gymnasium's robot, whose weights and limits count.
    """

    fields: tuple[str, ...] = ("qpos", "qvel")
    hidden = 1  # first positions, which the state excludes
    normal = False  # whether the velocities of a reset are normal; uniform otherwise

    def __init__(self, simulator: Any) -> None:
        self.simulator = simulator

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


class HalfCheetah(Robot):
    """Robot that does not terminate."""

    normal = True


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
    hidden = 2

    def position(self, fields: Fields) -> np.ndarray:
        masses = self.simulator.model.body_mass
        return np.einsum("b,nbj->nj", masses, fields["xipos"])[:, 0] / masses.sum()

    def healthy(self, fields: Fields) -> np.ndarray:
        low, high = self.simulator._healthy_z_range
        return (low < fields["qpos"][:, 2]) & (fields["qpos"][:, 2] < high)

    def costs(self, fields: Fields, actions: np.ndarray) -> np.ndarray:
        forces = fields["cfrc_ext"].reshape(len(actions), -1)
        contact = self.simulator._contact_cost_weight * np.square(forces).sum(1)
        control = super().costs(fields, fields["ctrl"])
        return control + contact.clip(*self.simulator._contact_cost_range)

    def state(self, fields: Fields) -> list[np.ndarray]:
        bodies = [fields[name][:, 1:] for name in ("cinert", "cvel")]
        forces = [fields["qfrc_actuator"][:, 6:], fields["cfrc_ext"][:, 1:]]
        return [*super().state(fields), *bodies, *forces]


ROBOTS: dict[str, type[Robot]] = {
    kind.__name__: kind for kind in (Ant, HalfCheetah, Hopper, Humanoid, Walker2d)
}
