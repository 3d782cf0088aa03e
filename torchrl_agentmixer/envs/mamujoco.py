"""MA-MuJoCo: robots whose joints are controlled by several agents, in batches."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.data import Bounded, TensorSpec, Unbounded

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.envs.base import BatchedEnv
from torchrl_agentmixer.envs.mamujoco_observations import Partition, make_team
from torchrl_agentmixer.envs.mamujoco_physics import SimulatorError, make_physics
from torchrl_agentmixer.envs.mamujoco_tasks import make_simulator
from torchrl_agentmixer.envs.optional import require
from torchrl_agentmixer.envs.simulation import check_shape


class MaMujocoEnv(BatchedEnv):
    """A batch of MA-MuJoCo robots, each controlled by a team of agents.

    Robots, rewards and partitions are those of gymnasium-robotics (FACMAC:
    `arXiv 2003.06709 <https://arxiv.org/abs/2003.06709>`_; its
    `documentation <https://robotics.farama.org/envs/MaMuJoCo/>`_), with the ``-v5`` robots of
    gymnasium. Every environment writes

    - ``("agents", "observation")`` ``[*B, n_agents, o]``: the observed joints, zeros up to the
      largest observation, and the agent's one-hot;
    - ``"state"`` ``[*B, s]``: the observation of the robot as a single agent;
    - ``"reward"`` ``[*B, 1]``: the robot's reward;
    - ``"terminated"``, ``"truncated"`` and ``"done"`` ``[*B, 1]``: a robot that is not healthy
      terminates, ``max_steps`` truncates;

    in float32, with angles in rad and lengths in m, and reads ``("agents", "action")``
    ``[*B, n_agents, a]``, torques relative to the actuators' gear. Actions are clamped to their
    bounds, also in the reward's control cost. Agents with different numbers of actions are in
    different groups: ``"upper_body"`` and ``"lower_body"`` of ``"humanoid_9_8"`` and
    ``"humanoid_standup_9_8"``, and ``"shoulder"``, ``"elbow"`` and ``"wrist"`` of ``"pusher_3p"``.

    The simulators run on threads of ``mujoco.batch``, outside of Python. Results do not depend on
    the number of threads. MuJoCo before 3.17 lacks it; a Python loop then gives the same results.

    Args:
        task (str): ``"ant_2x4"``, ``"ant_2x4d"``, ``"ant_4x2"``, ``"ant_8x1"``,
            ``"coupled_half_cheetah_1p1"``, ``"half_cheetah_2x3"``, ``"half_cheetah_6x1"``,
            ``"hopper_3x1"``, ``"humanoid_17x1"``, ``"humanoid_9_8"``,
            ``"humanoid_standup_17x1"``, ``"humanoid_standup_9_8"``, ``"many_segment_ant_NxM"`` or
            ``"many_segment_swimmer_NxM"`` (``N`` agents with ``M`` segments each),
            ``"pusher_3p"``, ``"reacher_2x1"``, ``"swimmer_2x1"``, ``"walker2d_2x3"`` or
            ``"walker2d_6x1"``.

    Keyword Args:
        num_envs (int): environments in the batch.
        agent_obsk (int, optional): an agent observes the joints up to this number of edges from
            its joints in the robot's graph: 0 for its joints only, ``None`` or ``"full"`` for the
            state.
        local_categories (sequence of sequences of str, optional): what an agent observes of joints
            at distance 0, 1, ...; the last one counts for all larger distances. ``"qpos"``,
            ``"qvel"`` and ``"qfrc_actuator"`` exist for all joints; ``"cfrc_ext"`` for those of
            ants, humanoids and the reacher; ``"cinert"`` and ``"cvel"`` for humanoids and the
            reacher; ``"fingertip_dist"`` for the reacher; ``"ten_J"``, ``"ten_length"`` and
            ``"ten_velocity"`` for the coupled half cheetah. By default those of
            gymnasium-robotics.
        global_categories (sequence of str): root coordinates that all agents observe: ``"qpos"``
            and ``"qvel"``.
        partition (sequence or mapping, optional): the joints of each agent, by their names in the
            robot's model, instead of the task's own partition: one sequence of names per agent.
            Agents with different numbers of joints need a mapping from group names to agents.
        agent_one_hot (bool): whether an observation ends with the agent's one-hot.
        max_steps (int, optional): time limit of an episode, in steps; by default gymnasium's: 50
            for the reacher, 100 for the pusher, otherwise 1000.
        num_threads (int): threads of the simulators, at most one per environment; no effect
            with MuJoCo before 3.17.
        device (optional): device of the tensordicts.
        seed (int, optional): seed from which each simulator's seed derives.

    Raises:
        ImportError: without gymnasium-robotics, with the install command.
        ValueError: for an unknown task, an option out of range, or, in a step, a NaN action.
        RuntimeError: for an error in a simulator; with its index and step.

    Examples:
        >>> env = MaMujocoEnv("half_cheetah_6x1", num_envs=4, seed=0)
        >>> rollout = env.rollout(3)
        >>> rollout["agents", "observation"].shape, rollout["next", "reward"].shape
        (torch.Size([4, 3, 6, 8]), torch.Size([4, 3, 1]))

        Agents of one half cheetah that are its thighs, shins and feet:

        >>> parts = [["bthigh", "fthigh"], ["bshin", "fshin"], ["bfoot", "ffoot"]]
        >>> MaMujocoEnv("half_cheetah_6x1", partition=parts).rollout(3)["agents", "action"].shape
        torch.Size([1, 3, 3, 2])
    """

    def __init__(
        self,
        task: str,
        *,
        num_envs: int = 1,
        agent_obsk: int | Literal["full"] | None = 0,
        local_categories: Sequence[Sequence[str]] | None = None,
        global_categories: Sequence[str] = (),
        partition: Partition | None = None,
        agent_one_hot: bool = True,
        max_steps: int | None = None,
        num_threads: int = 1,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        require("mamujoco")
        check_at_least("MaMujocoEnv", 1, num_envs=num_envs, num_threads=num_threads)
        robot, layout, groups = make_team(
            task,
            agent_obsk=agent_obsk,
            local_categories=local_categories,
            global_categories=global_categories,
            partition=partition,
            agent_one_hot=agent_one_hot,
        )
        max_steps = robot.max_steps if max_steps is None else max_steps
        check_at_least("MaMujocoEnv", 1, max_steps=max_steps)
        super().__init__(num_envs, device)
        self.task = task
        self.max_steps = max_steps
        self.group_map = {name: group.agents for name, group in groups.items()}
        self.n_agents = sum(len(group.agents) for group in groups.values())
        self._robot = robot
        self._cameras: dict[int, Any] = {}  # simulators of the environments that were rendered
        threads = min(num_threads, num_envs)
        self._physics = make_physics(robot.simulator.model, num_envs, threads, robot.fields)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._positions = np.zeros(num_envs)
        self._rows = np.zeros((num_envs, layout.one + 1), dtype=np.float32)
        self._rows[:, layout.one] = 1
        self._state_size = layout.state
        self._action_order = np.concatenate([g.actions.ravel() for g in groups.values()])
        self._actions = np.zeros((num_envs, self._action_order.size))
        for name, group in groups.items():
            index = torch.from_numpy(group.observations.ravel()).to(self.device)
            self.register_buffer(f"_{name}_index", index, persistent=False)
        self._make_specs({name: group.actions for name, group in groups.items()})
        self.set_seed(seed if seed is not None else int(torch.randint(2**62, ())))

    def _make_specs(self, indices: dict[str, np.ndarray]) -> None:
        space = self._robot.simulator.action_space
        low, high = space.low, space.high
        self._low, self._high = low.astype(np.float64), high.astype(np.float64)
        observations: dict[str, dict[str, TensorSpec]] = {}
        actions: dict[str, TensorSpec] = {}
        for group, index in indices.items():
            shape = (*self.batch_size, len(index))
            width = self._index(group).numel() // len(index)
            observation = Unbounded((*shape, width), device=self.device)
            observations[group] = {"observation": observation}
            bounds = (torch.from_numpy(x[index]).expand(*shape, -1) for x in (low, high))
            actions[group] = Bounded(*bounds, shape=(*shape, index.shape[-1]), device=self.device)
        self._set_specs(observations, actions, self._state_size)

    def _index(self, group: str) -> torch.Tensor:
        return self.get_buffer(f"_{group}_index")

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            return
        from gymnasium.utils import seeding

        # As `reset(seed=...)` of gymnasium, without a reset.
        seeds = np.random.SeedSequence(seed).generate_state(len(self._steps), np.uint64)
        self.seeds = [int(one) for one in seeds]
        self._random = [seeding.np_random(one)[0] for one in self.seeds]

    def _reset_where(self, mask: torch.Tensor) -> None:
        indices = np.flatnonzero(mask.numpy(force=True))
        if not indices.size:
            return
        starts = [self._robot.initial(self._random[i]) for i in indices.tolist()]
        qpos, qvel = (np.stack(values) for values in zip(*starts, strict=True))
        try:
            self._physics.reset(indices, qpos, qvel)
        except SimulatorError as error:
            raise self._named(error) from error.__cause__
        self._write_rows(indices)
        self._positions[indices] = self._robot.position(self._physics.fields)[indices]
        self._steps[indices] = 0

    def _write_rows(self, indices: np.ndarray | slice) -> None:
        """Write the rows of some robots."""
        self._rows[indices, :-2] = self._robot.row(self._physics.fields)[indices]

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._read_actions(tensordict)
        robot, fields = self._robot, self._physics.fields
        try:
            self._physics.step(self._actions, robot.simulator.frame_skip)
        except SimulatorError as error:
            raise self._named(error) from error.__cause__
        before, self._positions = self._positions, robot.position(fields)
        velocity = (self._positions - before) / robot.simulator.dt
        healthy = robot.healthy(fields)
        reward = robot.reward(fields, self._actions, velocity, healthy).astype(np.float32)
        self._write_rows(slice(None))
        self._steps += 1
        arrays = (reward, ~healthy, self._steps >= self.max_steps)  # new ones at every step
        return self._result(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def _read_actions(self, tensordict: TensorDictBase) -> None:
        """Put the agents' actions in the robots' order, clamped to their bounds."""
        flat = [
            tensordict.get((group, "action")).numpy(force=True).reshape(len(self._steps), -1)
            for group in self.group_map
        ]
        self._actions[:, self._action_order] = np.concatenate(flat, 1)
        if np.isnan(self._actions).any():
            i = int(np.isnan(self._actions).any(1).argmax())
            raise ValueError(
                f"{self.task}: NaN in the action of environment {i} at step {self._steps[i]}: "
                "expected finite numbers."
            )
        np.clip(self._actions, self._low, self._high, out=self._actions)

    def _named(self, error: SimulatorError) -> RuntimeError:
        i = error.index
        return RuntimeError(
            f"{self.task}: environment {i} failed at step {self._steps[i]} of its episode: {error}"
        )

    def _observations(self) -> dict[str, Any]:
        rows = torch.from_numpy(self._rows).to(self.device)
        groups = {
            group: {
                "observation": rows.index_select(1, self._index(group)).view(
                    *self.batch_size, len(agents), -1
                )
            }
            for group, agents in self.group_map.items()
        }
        return {**groups, "state": rows[:, : self._state_size].clone()}

    def simulation_state(self) -> dict[str, Any]:
        """Robots and random number generators; see ``simulation_state``."""
        return {
            "rows": torch.from_numpy(self._rows.copy()),
            "steps": torch.from_numpy(self._steps.copy()),
            "physics": torch.from_numpy(self._physics.state()),
            "positions": torch.from_numpy(self._positions.copy()),
            "random": [json.dumps(one.bit_generator.state) for one in self._random],
        }

    def load_simulation_state(self, state: Mapping[str, Any]) -> None:
        """Restore a simulation state; a ValueError for another robot or batch size."""
        own: dict[str, np.ndarray] = {
            "rows": self._rows,
            "steps": self._steps,
            "positions": self._positions,
        }
        for name, array in own.items():
            check_shape(self.task, name, state[name], array)
        for name, array in own.items():
            array[:] = state[name].numpy(force=True)
        self._physics.load_state(state["physics"].numpy(force=True))
        for generator, one in zip(self._random, state["random"], strict=True):
            generator.bit_generator.state = json.loads(one)

    def render(self, env_index: int = 0, **kwargs: Any) -> np.ndarray:
        """Image of one robot, ``[480, 480, 3]``, uint8.

        Without a display, MuJoCo renders with EGL, or with the environment variable
        ``MUJOCO_GL``.

        Raises:
            RuntimeError: if OpenGL is missing; with what to install.
        """
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")
        if env_index not in self._cameras:
            self._cameras[env_index] = make_simulator(self.task)
        simulator = self._cameras[env_index]
        self._physics.copy_data(env_index, simulator.data)
        try:
            if simulator.mujoco_renderer.viewer is not None:  # another camera's may be current
                simulator.mujoco_renderer.viewer.make_context_current()
            return simulator.render()
        except Exception as error:
            raise RuntimeError(
                f"{self.task}: MuJoCo cannot render with MUJOCO_GL={os.environ.get('MUJOCO_GL')}: "
                f"{error}. Without a display, install EGL (Debian: libegl1) and set MUJOCO_GL=egl, "
                "or OSMesa (Debian: libosmesa6) and set MUJOCO_GL=osmesa."
            ) from error

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the simulators and their renderers."""
        for simulator in (self._robot.simulator, *self._cameras.values()):
            simulator.close()
        super().close(raise_if_closed=raise_if_closed)
