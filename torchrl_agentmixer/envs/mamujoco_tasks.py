"""Tasks of MA-MuJoCo: robots, partitions of their joints, and simulators."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from torchrl_agentmixer._choices import check_known

# Robot and partition of its joints, by the names of gymnasium-robotics.
TASKS: dict[str, tuple[str, str]] = {
    "ant_2x4": ("Ant", "2x4"),
    "ant_2x4d": ("Ant", "2x4d"),
    "ant_4x2": ("Ant", "4x2"),
    "ant_8x1": ("Ant", "8x1"),
    "coupled_half_cheetah_1p1": ("CoupledHalfCheetah", "1p1"),
    "half_cheetah_2x3": ("HalfCheetah", "2x3"),
    "half_cheetah_6x1": ("HalfCheetah", "6x1"),
    "hopper_3x1": ("Hopper", "3x1"),
    "humanoid_17x1": ("Humanoid", "17x1"),
    "humanoid_9_8": ("Humanoid", "9|8"),
    "humanoid_standup_17x1": ("HumanoidStandup", "17x1"),
    "humanoid_standup_9_8": ("HumanoidStandup", "9|8"),
    "many_segment_ant_2x3": ("ManySegmentAnt", "2x3"),
    "many_segment_ant_3x1": ("ManySegmentAnt", "3x1"),
    "many_segment_swimmer_10x2": ("ManySegmentSwimmer", "10x2"),
    "many_segment_swimmer_6x1": ("ManySegmentSwimmer", "6x1"),
    "pusher_3p": ("Pusher", "3p"),
    "reacher_2x1": ("Reacher", "2x1"),
    "swimmer_2x1": ("Swimmer", "2x1"),
    "walker2d_2x3": ("Walker2d", "2x3"),
    "walker2d_6x1": ("Walker2d", "6x1"),
}
_MANY_SEGMENTS = re.compile(r"many_segment_(ant|swimmer)_([1-9]\d*)x([1-9]\d*)")


def is_task(name: str) -> bool:
    """Whether a name is in ``TASKS``, or a many-segment robot of any size.

    Examples:
        >>> is_task("many_segment_swimmer_4x3"), is_task("swimmer_4x3")
        (True, False)
    """
    return name in TASKS or _MANY_SEGMENTS.fullmatch(name) is not None


def robot_of(task: str) -> tuple[str, str]:
    """Robot and partition of a task, by the names of gymnasium-robotics.

    ``"many_segment_ant_NxM"`` and ``"many_segment_swimmer_NxM"`` have ``N`` agents with ``M``
    segments each.

    Raises:
        ValueError: for an unknown task, or a swimmer of one segment.

    Examples:
        >>> robot_of("many_segment_ant_4x2")
        ('ManySegmentAnt', '4x2')
    """
    if match := _MANY_SEGMENTS.fullmatch(task):
        kind, agents, segments = match[1], match[2], match[3]
        if kind == "swimmer" and agents == segments == "1":
            raise ValueError(f"{task}: expected at least 2 segments, got 1.")
        return f"ManySegment{kind.title()}", f"{agents}x{segments}"
    check_known("MA-MuJoCo task", [task], TASKS)
    return TASKS[task]


def make_simulator(task: str) -> Any:
    """Make gymnasium's or gymnasium-robotics' environment of a task's robot."""
    kind, partition = robot_of(task)
    with quiet_compiler():
        if kind == "CoupledHalfCheetah":
            return _part_of_robotics("coupled_half_cheetah").CoupledHalfCheetahEnv("rgb_array")
        if not kind.startswith("ManySegment"):
            return _make(kind)
        n_agents, segments = map(int, partition.split("x"))
        robot = kind.removeprefix("ManySegment")
        with tempfile.TemporaryDirectory() as folder:  # the package's own may be read-only
            file = str(Path(folder) / f"{robot}.xml")
            _part_of_robotics(f"many_segment_{robot.lower()}").gen_asset(n_agents * segments, file)
            return _make(robot, xml_file=file)


def _make(robot: str, **options: Any) -> Any:
    import gymnasium

    return gymnasium.make(f"{robot}-v5", render_mode="rgb_array", **options).unwrapped


def _part_of_robotics(name: str) -> Any:
    return import_module(f"gymnasium_robotics.envs.multiagent_mujoco.{name}")


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
