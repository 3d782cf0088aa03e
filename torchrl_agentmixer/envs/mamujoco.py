"""MA-MuJoCo: robots whose joints are controlled by several agents, in batches."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.data import Bounded, TensorSpec, Unbounded

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.envs.base import BatchedEnv
from torchrl_agentmixer.envs.mamujoco_observations import TASKS, agent_indices, quiet_compiler
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
    bounds, also in the reward's control cost. ``"humanoid_9_8"``, whose agents have 9 and 8
    actions, has two groups, ``"upper_body"`` and ``"lower_body"``.

    The simulators run one after the other on the CPU. For more than one core, use TorchRL's
    ``ParallelEnv`` or ``MultiSyncCollector`` over batches.

    Args:
        task (str): ``"ant_2x4"``, ``"ant_2x4d"``, ``"ant_4x2"``, ``"ant_8x1"``,
            ``"half_cheetah_2x3"``, ``"half_cheetah_6x1"``, ``"hopper_3x1"``, ``"humanoid_17x1"``,
            ``"humanoid_9_8"``, ``"walker2d_2x3"`` or ``"walker2d_6x1"``.

    Keyword Args:
        num_envs (int): environments in the batch.
        agent_obsk (int, optional): an agent observes the joints up to this number of edges from
            its joints in the robot's graph: 0 for its joints only, ``None`` or ``"full"`` for the
            state.
        global_categories (sequence of str): root coordinates that all agents observe: ``"qpos"``
            and ``"qvel"``.
        agent_one_hot (bool): whether an observation ends with the agent's one-hot.
        max_steps (int): time limit of an episode, in steps.
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
    """

    def __init__(
        self,
        task: str,
        *,
        num_envs: int = 1,
        agent_obsk: int | Literal["full"] | None = 0,
        global_categories: Sequence[str] = (),
        agent_one_hot: bool = True,
        max_steps: int = 1000,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        require("mamujoco")
        check_at_least("MaMujocoEnv", 1, num_envs=num_envs, max_steps=max_steps)
        layout, groups = agent_indices(
            task,
            agent_obsk=agent_obsk,
            global_categories=global_categories,
            agent_one_hot=agent_one_hot,
        )
        import gymnasium

        super().__init__(num_envs, device)
        self.task = task
        self.max_steps = max_steps
        self.group_map = {name: group.agents for name, group in groups.items()}
        self.n_agents = sum(len(group.agents) for group in groups.values())
        robot = f"{TASKS[task][0]}-v5"
        with quiet_compiler():
            self._simulators: list[Any] = [
                gymnasium.make(robot, render_mode="rgb_array").unwrapped for _ in range(num_envs)
            ]
        self._steps = np.zeros(num_envs, dtype=np.int64)
        rows = np.zeros((num_envs, layout.one + 1))
        rows[:, layout.one] = 1
        self._rows = rows
        self._states = rows[:, : layout.state]  # a view
        self._velocities = rows[:, layout.state : layout.zero]  # a view
        self._action_order = np.concatenate([g.actions.ravel() for g in groups.values()])
        self._actions = np.zeros((num_envs, self._action_order.size))
        for name, group in groups.items():
            index = torch.from_numpy(group.observations.ravel()).to(self.device)
            self.register_buffer(f"_{name}_index", index, persistent=False)
        self._make_specs({name: group.actions for name, group in groups.items()})
        self.set_seed(seed if seed is not None else int(torch.randint(2**62, ())))

    def _make_specs(self, indices: dict[str, np.ndarray]) -> None:
        low, high = (getattr(self._simulators[0].action_space, side) for side in ("low", "high"))
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
        self._set_specs(observations, actions, self._states.shape[-1])

    def _index(self, group: str) -> torch.Tensor:
        return self.get_buffer(f"_{group}_index")

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            return
        from gymnasium.utils import seeding

        # As `reset(seed=...)`, without a simulation step.
        seeds = np.random.SeedSequence(seed).generate_state(len(self._simulators), np.uint64)
        self.seeds = [int(one) for one in seeds]
        for simulator, one in zip(self._simulators, self.seeds, strict=True):
            simulator.np_random = seeding.np_random(one)[0]

    def _reset_where(self, mask: torch.Tensor) -> None:
        for i in np.flatnonzero(mask.numpy(force=True)).tolist():
            with self._named_errors(i):
                self._states[i], _ = self._simulators[i].reset()
                self._velocities[i] = self._simulators[i].data.qvel
            self._steps[i] = 0

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._read_actions(tensordict)
        reward = np.empty(len(self._simulators), dtype=np.float32)
        terminated = np.empty(len(self._simulators), dtype=bool)
        for i, simulator in enumerate(self._simulators):
            with self._named_errors(i):
                self._states[i], reward[i], terminated[i], _, _ = simulator.step(self._actions[i])
                self._velocities[i] = simulator.data.qvel
        self._steps += 1
        arrays = (reward, terminated, self._steps >= self.max_steps)  # new ones at every step
        return self._result(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def _read_actions(self, tensordict: TensorDictBase) -> None:
        """Put the agents' actions in the robots' order, clamped to their bounds."""
        flat = [
            tensordict.get((group, "action")).numpy(force=True).reshape(len(self._simulators), -1)
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

    @contextmanager
    def _named_errors(self, i: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise RuntimeError(
                f"{self.task}: environment {i} failed at step {self._steps[i]} of its episode: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _observations(self) -> dict[str, Any]:
        rows = torch.from_numpy(self._rows).to(self.device, torch.float32)  # a copy
        groups = {
            group: {
                "observation": rows.index_select(1, self._index(group)).view(
                    *self.batch_size, len(agents), -1
                )
            }
            for group, agents in self.group_map.items()
        }
        return {**groups, "state": rows[:, : self._states.shape[-1]].clone()}

    def simulation_state(self) -> dict[str, Any]:
        """Robots and random number generators; see ``simulation_state``."""
        cartesian = [np.concatenate([a.ravel() for a in _cartesian(s)]) for s in self._simulators]
        return {
            "rows": torch.from_numpy(self._rows.copy()),
            "steps": torch.from_numpy(self._steps.copy()),
            "physics": torch.from_numpy(np.stack([_physics(s) for s in self._simulators])),
            "positions": torch.from_numpy(np.stack(cartesian)),
            "random": [json.dumps(s.np_random.bit_generator.state) for s in self._simulators],
        }

    def load_simulation_state(self, state: Mapping[str, Any]) -> None:
        """Restore a simulation state; a ValueError for another robot or batch size."""
        import mujoco

        check_shape(self.task, "rows", state["rows"], self._rows)
        self._rows[:] = state["rows"].numpy(force=True)
        self._steps[:] = state["steps"].numpy(force=True)
        for i, simulator in enumerate(self._simulators):
            physics = state["physics"][i].numpy(force=True)
            kind = mujoco.mjtState.mjSTATE_INTEGRATION
            mujoco.mj_setState(simulator.model, simulator.data, physics, kind)
            start = 0
            positions = state["positions"][i].numpy(force=True)
            for array in _cartesian(simulator):
                array[:] = positions[start : start + array.size].reshape(array.shape)
                start += array.size
            simulator.np_random.bit_generator.state = json.loads(state["random"][i])

    def render(self, env_index: int = 0, **kwargs: Any) -> np.ndarray:
        """Image of one robot, ``[480, 480, 3]``, uint8.

        Without a display, MuJoCo renders with EGL, or with the environment variable
        ``MUJOCO_GL``.

        Raises:
            RuntimeError: if OpenGL is missing; with what to install.
        """
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")
        simulator = self._simulators[env_index]
        try:
            if simulator.mujoco_renderer.viewer is not None:  # another simulator's may be current
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
        for simulator in self._simulators:
            simulator.close()
        super().close(raise_if_closed=raise_if_closed)


def _physics(simulator: Any) -> np.ndarray:
    """MuJoCo's integration state: all that a step depends on."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(simulator.model, kind))
    mujoco.mj_getState(simulator.model, simulator.data, state, kind)
    return state


def _cartesian(simulator: Any) -> list[np.ndarray]:
    """Positions of bodies before the last substep, from which motion rewards are computed."""
    return [simulator.data.xpos, simulator.data.xipos]
