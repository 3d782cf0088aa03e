"""Arms of MA-MuJoCo: rewards, resets and states of a batch, as in gymnasium."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from torchrl_agentmixer.envs.mamujoco_robots import Fields, Robot


class Arm(Robot):
    """Arm whose reward is the negative of weighted distances and of the control's cost."""

    fields = ("qpos", "qvel", "xpos")

    def body(self, fields: Fields, name: str) -> np.ndarray:
        """Position of a body, ``[num_envs, 3]``."""
        return fields["xpos"][:, self.simulator.model.body(name).id]

    def distance(self, fields: Fields) -> np.ndarray:
        """Weighted sum of distances, ``[num_envs]``."""
        raise NotImplementedError

    def costs(self, fields: Fields, actions: np.ndarray) -> np.ndarray:
        return self.simulator._reward_control_weight * np.square(actions).sum(1)

    def reward(
        self, fields: Fields, actions: np.ndarray, velocity: np.ndarray, healthy: np.ndarray
    ) -> np.ndarray:
        return -self.distance(fields) - self.costs(fields, actions)


class Reacher(Arm):
    """Arm of two joints in a plane, with a target that each reset draws."""

    categories = ("qpos", "qvel", "fingertip_dist")
    max_steps = 50

    def initial(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        robot = self.simulator
        qpos = robot.init_qpos + random.uniform(-0.1, 0.1, robot.model.nq)
        qpos[-2:] = _draw(lambda: random.uniform(-0.2, 0.2, 2), lambda norm: norm < 0.2)
        qvel = robot.init_qvel + random.uniform(-0.005, 0.005, robot.model.nv)
        qvel[-2:] = 0
        return qpos, qvel

    def distance(self, fields: Fields) -> np.ndarray:
        return self.simulator._reward_dist_weight * np.linalg.norm(self._offset(fields), axis=1)

    def state(self, fields: Fields) -> list[np.ndarray]:
        qpos, qvel = fields["qpos"], fields["qvel"]
        angles = [np.cos(qpos[:, :2]), np.sin(qpos[:, :2])]
        return [*angles, qpos[:, 2:], qvel[:, :2], self._offset(fields)[:, :2]]

    def observed(self, fields: Fields) -> list[np.ndarray]:
        return [*super().observed(fields), self._offset(fields)]

    def _offset(self, fields: Fields) -> np.ndarray:
        return self.body(fields, "fingertip") - self.body(fields, "target")


class Pusher(Arm):
    """Arm of seven joints that pushes a cylinder to a goal."""

    max_steps = 100

    def initial(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        robot, low, high = self.simulator, [-0.3, -0.2], [0.0, 0.2]
        qpos = robot.init_qpos.copy()
        qpos[-4:-2] = _draw(lambda: random.uniform(low, high), lambda norm: norm > 0.17)
        qpos[-2:] = 0
        qvel = robot.init_qvel + random.uniform(-0.005, 0.005, robot.model.nv)
        qvel[-4:] = 0
        return qpos, qvel

    def distance(self, fields: Fields) -> np.ndarray:
        robot, cylinder = self.simulator, self.body(fields, "object")
        near = np.linalg.norm(cylinder - self.body(fields, "tips_arm"), axis=1)
        far = np.linalg.norm(cylinder - self.body(fields, "goal"), axis=1)
        return robot._reward_near_weight * near + robot._reward_dist_weight * far

    def state(self, fields: Fields) -> list[np.ndarray]:
        bodies = [self.body(fields, name) for name in ("tips_arm", "object", "goal")]
        return [fields["qpos"][:, :7], fields["qvel"][:, :7], *bodies]


def _draw(sample: Callable[[], np.ndarray], accept: Callable[[float], bool]) -> np.ndarray:
    """Sample until the norm of the sample is accepted."""
    while True:
        drawn = sample()
        if accept(float(np.linalg.norm(drawn))):
            return drawn
