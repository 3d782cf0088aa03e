"""Partitions of robots among the agents of MA-MuJoCo: indices of actions and observations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np

from torchrl_agentmixer._choices import check_known

# Robot and partition of its joints, by the names of gymnasium-robotics.
TASKS: dict[str, tuple[str, str]] = {
    "ant_2x4": ("Ant", "2x4"),
    "ant_2x4d": ("Ant", "2x4d"),
    "ant_4x2": ("Ant", "4x2"),
    "ant_8x1": ("Ant", "8x1"),
    "half_cheetah_2x3": ("HalfCheetah", "2x3"),
    "half_cheetah_6x1": ("HalfCheetah", "6x1"),
    "hopper_3x1": ("Hopper", "3x1"),
    "humanoid_17x1": ("Humanoid", "17x1"),
    "humanoid_9_8": ("Humanoid", "9|8"),
    "walker2d_2x3": ("Walker2d", "2x3"),
    "walker2d_6x1": ("Walker2d", "6x1"),
}
# Partitions that gymnasium-robotics lacks: one agent per joint.
_ONE_JOINT_EACH = ("ant_8x1", "humanoid_17x1", "walker2d_6x1")
# Agents with different numbers of actions: one group each, so that actions are not padded.
_OWN_GROUPS = {"humanoid_9_8": ("upper_body", "lower_body")}
_GLOBAL_CATEGORIES = ("qpos", "qvel")


class AgentIndices(NamedTuple):
    """Actions and observations of the agents of one group."""

    agents: list[str]
    actions: np.ndarray  # [n_agents, a], indices into the robot's action
    observations: np.ndarray  # [n_agents, o], columns of a row


class RowLayout(NamedTuple):
    """Columns of a simulator's row, from which all observations are gathered."""

    state: int  # number of entries of the state, and first column of the joint velocities
    zero: int  # column of the constant 0, which pads observations
    one: int  # column of the constant 1, for one-hots; the last column


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Suppress MuJoCo's warnings about gymnasium's models, which it also writes to a log file."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def agent_indices(
    task: str,
    *,
    agent_obsk: int | Literal["full"] | None = 0,
    global_categories: Sequence[str] = (),
    agent_one_hot: bool = True,
) -> tuple[RowLayout, dict[str, AgentIndices]]:
    """Compute the layout of a row, and the indices of each group; options as ``MaMujocoEnv``.

    An observation consists of the agent's joints and those up to ``agent_obsk`` edges away in the
    robot's graph, as in gymnasium-robotics, zeros up to the largest observation of the group, and
    the agent's one-hot.

    Examples:
        >>> layout, groups = agent_indices("half_cheetah_2x3")
        >>> groups["agents"].actions.tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    full = _observes_state(task, agent_obsk, global_categories)
    from gymnasium_robotics import mamujoco_v1

    robot, partition = TASKS[task]
    factorization = None
    if task in _ONE_JOINT_EACH:
        (joints,), edges, root = mamujoco_v1.get_parts_and_edges(robot, None)
        factorization = {"partition": [(j,) for j in joints], "edges": edges, "globals": root}
    with quiet_compiler():
        raw = mamujoco_v1.parallel_env(
            robot,
            partition,
            agent_obsk=0 if full else agent_obsk,
            agent_factorization=factorization,
            global_categories=tuple(global_categories),
        )
    simulator: Any = raw.single_agent_env.unwrapped
    size = simulator.observation_space.shape[0]
    layout = RowLayout(size, size + simulator.model.nv, size + simulator.model.nv + 1)
    names = list(raw.possible_agents)
    observed = [
        np.arange(layout.state)
        if full
        else _columns(raw.observation_factorization[name], simulator, robot, layout)
        for name in names
    ]
    actions = [[joint.act_ids for joint in part] for part in raw.agent_action_partitions]
    raw.close()

    own = _OWN_GROUPS.get(task)
    members = {"agents": range(len(names))} if own is None else {g: [i] for i, g in enumerate(own)}
    groups = {}
    for group, indices in members.items():
        if len({len(actions[i]) for i in indices}) > 1:
            sizes = [len(actions[i]) for i in indices]
            raise ValueError(f"{task}: agents of group {group!r} have {sizes} actions, not equal.")
        width = max(len(observed[i]) for i in indices)
        rows = []
        for i in indices:
            row = [*observed[i], *[layout.zero] * (width - len(observed[i]))]
            if agent_one_hot:
                row += [layout.one if i == j else layout.zero for j in range(len(names))]
            rows.append(row)
        groups[group] = AgentIndices(
            [names[i] for i in indices],
            np.array([actions[i] for i in indices]),
            np.array(rows, dtype=np.int64),
        )
    return layout, groups


def _columns(indices: np.ndarray, simulator: Any, robot: str, layout: RowLayout) -> np.ndarray:
    indices = np.asarray(indices, dtype=np.int64)
    if robot != "Walker2d":
        return indices
    # The state clips this robot's velocities at 10; agents' observations do not.
    first = simulator.observation_structure["qpos"]
    is_velocity = (indices >= first) & (indices < first + layout.zero - layout.state)
    return np.where(is_velocity, indices - first + layout.state, indices)


def _observes_state(task: str, agent_obsk: Any, global_categories: Any) -> bool:
    """Check the options; return whether agents observe the full state."""
    check_known("MA-MuJoCo task", [task], TASKS)
    if isinstance(global_categories, str) or set(global_categories) - set(_GLOBAL_CATEGORIES):
        raise ValueError(
            f"{task}: expected `global_categories` to be a sequence of some of "
            f"{_GLOBAL_CATEGORIES}, got {global_categories!r}."
        )
    if agent_obsk is None or agent_obsk == "full":
        return True
    if isinstance(agent_obsk, bool) or not isinstance(agent_obsk, int) or agent_obsk < 0:
        raise ValueError(
            f"{task}: expected `agent_obsk` to be an integer >= 0 (a distance), or None or 'full' "
            f"for the state, got {agent_obsk!r}."
        )
    return False
