"""Teams of MA-MuJoCo: the joints that each agent moves, and what it observes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np

from torchrl_agentmixer._choices import check_known
from torchrl_agentmixer.envs import mamujoco_arms as arms
from torchrl_agentmixer.envs import mamujoco_robots as robots
from torchrl_agentmixer.envs.mamujoco_robots import Robot
from torchrl_agentmixer.envs.mamujoco_tasks import make_simulator, robot_of
from torchrl_agentmixer.groups import RESERVED

# By the names of gymnasium-robotics.
ROBOTS: dict[str, type[Robot]] = {
    "Ant": robots.Ant,
    "CoupledHalfCheetah": robots.CoupledHalfCheetah,
    "HalfCheetah": robots.HalfCheetah,
    "Hopper": robots.Hopper,
    "Humanoid": robots.Humanoid,
    "HumanoidStandup": robots.HumanoidStandup,
    "ManySegmentAnt": robots.Ant,
    "ManySegmentSwimmer": robots.Swimmer,
    "Pusher": arms.Pusher,
    "Reacher": arms.Reacher,
    "Swimmer": robots.Swimmer,
    "Walker2d": robots.Walker2d,
}
# Partitions that gymnasium-robotics lacks: one agent per joint.
ONE_JOINT_EACH = ("ant_8x1", "humanoid_17x1", "humanoid_standup_17x1", "walker2d_6x1")
# Agents with different numbers of actions: one group each, so that actions are not padded.
_OWN_GROUPS = {
    "humanoid_9_8": ("upper_body", "lower_body"),
    "humanoid_standup_9_8": ("upper_body", "lower_body"),
    "pusher_3p": ("shoulder", "elbow", "wrist"),
}
_OF_ALL_JOINTS = {"qpos", "qvel", "qfrc_actuator"}
_OF_BODIES = {"cinert", "cvel", "cfrc_ext"}
_GLOBAL_CATEGORIES = ("qpos", "qvel")
_NO_GROUPS = ("state", "reward", "done", "terminated", "truncated", *sorted(RESERVED))

# The joints of each agent, by name; in a mapping, the agents of each group.
Partition = Sequence[Sequence[str]] | Mapping[str, Sequence[Sequence[str]]]


class AgentIndices(NamedTuple):
    """Actions and observations of the agents of one group."""

    agents: list[str]
    actions: np.ndarray  # [n_agents, a], indices into the robot's action
    observations: np.ndarray  # [n_agents, o], columns of a row


class RowLayout(NamedTuple):
    """Columns of a simulator's row, from which all observations are gathered."""

    state: int  # number of entries of the state, which come first
    zero: int  # column of the constant 0, which pads observations
    one: int  # column of the constant 1, for one-hots; the last column


class Team(NamedTuple):
    """A robot, and the agents that move it."""

    robot: Robot
    layout: RowLayout
    groups: dict[str, AgentIndices]


class _Graph(NamedTuple):
    """Graph of a robot's joints, as nodes and edges of gymnasium-robotics."""

    groups: dict[str, list[tuple[Any, ...]]]  # the joints of each agent
    edges: list[Any]
    root: list[Any]

    @property
    def agents(self) -> list[tuple[Any, ...]]:
        return [joints for members in self.groups.values() for joints in members]


def make_team(
    task: str,
    *,
    agent_obsk: int | Literal["full"] | None = 0,
    local_categories: Sequence[Sequence[str]] | None = None,
    global_categories: Sequence[str] = (),
    partition: Partition | None = None,
    agent_one_hot: bool = True,
) -> Team:
    """Make a robot, and compute the indices of each group; options as ``MaMujocoEnv``.

    An observation consists of the agent's joints and those up to ``agent_obsk`` edges away in the
    robot's graph, as in gymnasium-robotics, zeros up to the largest observation of the group, and
    the agent's one-hot.

    Examples:
        >>> team = make_team("half_cheetah_2x3")
        >>> team.groups["agents"].actions.tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    kind, _ = robot_of(task)
    levels = _levels(task, ROBOTS[kind], agent_obsk, local_categories)
    _check_categories(task, "global_categories", global_categories, _GLOBAL_CATEGORIES)
    simulator = make_simulator(task)
    graph = _graph(task, simulator.model, partition)
    _check_local(task, graph, local_categories or [])
    robot = ROBOTS[kind](simulator, {name for level in levels or [] for name in level})
    size = simulator.observation_space.shape[0]
    if levels is None:
        observed = [np.arange(size)] * len(graph.agents)
        columns = robot.row(_probe(robot)[0]).shape[1]
    else:
        observed, columns = _observed(task, robot, graph, levels, tuple(global_categories))
    layout = RowLayout(size, columns, columns + 1)
    return Team(robot, layout, _indices(task, graph, observed, layout, agent_one_hot))


def _graph(task: str, model: Any, partition: Partition | None) -> _Graph:
    from gymnasium_robotics import mamujoco_v1

    kind, name = robot_of(task)
    each = task in ONE_JOINT_EACH
    parts, edges, root = mamujoco_v1.get_parts_and_edges(kind, None if each else name)
    nodes = [node for part in parts for node in part]
    if partition is not None:
        names = [model.joint(int(i)).name for i in model.actuator_trnid[:, 0]]
        return _Graph(
            _own_groups(task, partition, {names[n.act_ids]: n for n in nodes}), edges, root
        )
    if each:
        parts = [(node,) for node in nodes]
    groups = {"agents": parts}
    if task in _OWN_GROUPS:
        groups = {group: [part] for group, part in zip(_OWN_GROUPS[task], parts, strict=True)}
    return _Graph(groups, edges, root)


def _own_groups(
    task: str, partition: Partition, nodes: dict[str, Any]
) -> dict[str, list[tuple[Any, ...]]]:
    groups = partition if isinstance(partition, Mapping) else {"agents": partition}
    for group, agents in groups.items():
        if not group.isidentifier() or group in _NO_GROUPS or not agents:
            raise ValueError(
                f"{task}: expected `partition` to map names of groups, other than {_NO_GROUPS}, to "
                f"at least one agent each, got {group!r}: {agents!r}."
            )
    used = [joint for agents in groups.values() for joints in agents for joint in joints]
    check_known(f"joint in `partition` of {task}", used, nodes)
    for joint in nodes:
        if used.count(joint) != 1:
            raise ValueError(
                f"{task}: expected `partition` to give each joint to one agent, got {joint!r} "
                f"{used.count(joint)} times. Joints: {', '.join(nodes)}."
            )
    return {
        group: [tuple(nodes[joint] for joint in joints) for joints in agents]
        for group, agents in groups.items()
    }


def _observed(
    task: str,
    robot: Robot,
    graph: _Graph,
    levels: list[tuple[str, ...]],
    categories: tuple[str, ...],
) -> tuple[list[np.ndarray], int]:
    """Columns of a row that each agent observes, and the number of columns.

    They are found by their values where the fields of ``MjData`` have different values: small
    ones, then large ones, which tell the clipped columns from the others.
    """
    from gymnasium_robotics.envs.multiagent_mujoco import obsk

    near = [obsk.get_joints_at_kdist(part, graph.edges, k=len(levels) - 1) for part in graph.agents]
    for joints in near:  # gymnasium-robotics sorts by label only, and some joints share one
        for k, found in joints.items():
            joints[k] = sorted(found, key=lambda node: (node.label, node.act_ids))
    rows, seen = [], []
    for scale in (1.0, 100.0):
        fields, data = _probe(robot, scale)
        rows.append(robot.row(fields)[0])
        seen.append([obsk.build_obs(data, x, levels, graph.root, categories) for x in near])
    observed = []
    for small, large in zip(*seen, strict=True):
        pairs = zip((small, large), rows, strict=True)
        equal = np.all([np.isclose(x[:, None], row, 0, 1e-9) for x, row in pairs], axis=0)
        if not equal.any(1).all():
            raise RuntimeError(
                f"{task}: gymnasium-robotics observes what is not in the robot's row."
            )
        observed.append(equal.argmax(1))
    return observed, len(rows[0])


def _probe(robot: Robot, scale: float = 1.0) -> tuple[dict[str, np.ndarray], Any]:
    """Fields ``[1, ...]`` of random numbers, and the same as the data of a simulator."""
    import mujoco

    data, random = mujoco.MjData(robot.simulator.model), np.random.default_rng(0)
    for name in robot.fields:
        field = getattr(data, name)
        field[:] = scale * random.uniform(0.5, 1, field.shape)
    fields = {name: getattr(data, name)[None] for name in robot.fields}
    view = SimpleNamespace(body=data.body, **{name: field[0] for name, field in fields.items()})
    if isinstance(robot, robots.CoupledHalfCheetah):
        view.ten_J = robot.jacobian(fields)  # gymnasium-robotics expects the zeros
    return fields, view


def _indices(
    task: str, graph: _Graph, observed: list[np.ndarray], layout: RowLayout, agent_one_hot: bool
) -> dict[str, AgentIndices]:
    n_agents, groups, first = len(observed), {}, 0
    for group, members in graph.groups.items():
        sizes = [len(joints) for joints in members]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"{task}: agents of group {group!r} have {sizes} actions, expected equal numbers: "
                "give a mapping from groups to agents as `partition`."
            )
        indices = range(first, first + len(members))
        first += len(members)
        width = max(len(observed[i]) for i in indices)
        rows = []
        for i in indices:
            row = [*observed[i], *[layout.zero] * (width - len(observed[i]))]
            if agent_one_hot:
                row += [layout.one if i == j else layout.zero for j in range(n_agents)]
            rows.append(row)
        groups[group] = AgentIndices(
            [f"agent_{i}" for i in indices],
            np.array([[joint.act_ids for joint in joints] for joints in members]),
            np.array(rows, dtype=np.int64),
        )
    return groups


def _levels(
    task: str, robot: type[Robot], agent_obsk: Any, local_categories: Any
) -> list[tuple[str, ...]] | None:
    """What agents observe of joints at each distance; ``None`` if they observe the state."""
    full = agent_obsk is None or agent_obsk == "full"
    is_distance = isinstance(agent_obsk, int) and not isinstance(agent_obsk, bool)
    if not full and (not is_distance or agent_obsk < 0):
        raise ValueError(
            f"{task}: expected `agent_obsk` to be an integer >= 0 (a distance), or None or 'full' "
            f"for the state, got {agent_obsk!r}."
        )
    if local_categories is None:
        return None if full else [robot.categories, *[("qpos",)] * agent_obsk]
    most = 0 if full else agent_obsk + 1
    if isinstance(local_categories, str) or not 0 < len(local_categories) <= most:
        raise ValueError(
            f"{task}: expected `local_categories` to be one sequence of categories per distance, "
            f"at most {most} with `agent_obsk={agent_obsk!r}`, got {local_categories!r}."
        )
    levels = [tuple(level) for level in local_categories]
    return levels + levels[-1:] * (most - len(levels))


def _check_local(task: str, graph: _Graph, local_categories: Iterable[Any]) -> None:
    joints = [joint for agent in graph.agents for joint in agent]
    known = _OF_ALL_JOINTS | {name for joint in joints for name in joint.extra_obs}
    if any(joint.body_fn for joint in joints):  # of ants, whose contact forces it clips
        known |= {"cfrc_ext"}
    elif any(joint.bodies for joint in joints):
        known |= _OF_BODIES
    for level in local_categories:
        _check_categories(task, "local_categories", level, sorted(known))


def _check_categories(task: str, option: str, given: Any, known: Iterable[str]) -> None:
    if isinstance(given, str) or set(given) - set(known):
        raise ValueError(
            f"{task}: expected `{option}` to be a sequence of some of {tuple(known)}, "
            f"got {given!r}."
        )
