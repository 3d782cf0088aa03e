"""Comparison of MA-MuJoCo batches with gymnasium-robotics."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics")

from tensordict import TensorDictBase
from torchrl.envs import ParallelEnv, TransformedEnv, VecNormV2
from torchrl.envs.utils import check_env_specs

from tests.envs.mamujoco_reference import (
    assert_same_rewards_and_ends,
    assert_same_sight,
    follow,
    reference,
    shares,
)
from torchrl_agentmixer.envs import MaMujocoEnv, available_envs, make_env, mamujoco_observations
from torchrl_agentmixer.envs.mamujoco_observations import make_team
from torchrl_agentmixer.envs.mamujoco_tasks import TASKS
from torchrl_agentmixer.groups import agent_groups

# Steps of each comparison; episodes have at most 1000.
STEPS = int(os.environ.get("MAMUJOCO_STEPS", "100"))
N = 2
every_task = pytest.mark.parametrize("task", list(TASKS))


@every_task
@pytest.mark.parametrize(("obsk", "categories"), [(0, ()), (1, ("qpos", "qvel"))])
def test_equal_to_gymnasium_robotics(task, obsk, categories):
    options = {"agent_obsk": obsk, "global_categories": categories}
    env = make_env(f"mamujoco/{task}", num_envs=N, seed=3, **options)
    raw = [reference(task, obsk, categories) for _ in range(N)]
    torch.manual_seed(0)
    for _, after, result in follow(env, raw, STEPS):
        assert_same_rewards_and_ends(after, result)


@pytest.mark.parametrize("task", ["hopper_3x1", "walker2d_2x3", "walker2d_6x1"])
def test_equal_where_velocities_are_clipped(task):
    """Beyond 10: in Hopper's state and observations, in Walker2d's state only."""
    env = make_env(f"mamujoco/{task}", num_envs=1, global_categories=("qvel",))
    raw = reference(task, categories=("qvel",))
    env.reset()
    raw.reset()
    simulator = raw.single_agent_env.unwrapped
    fast = np.full(simulator.model.nv, 25.0)
    simulator.set_state(simulator.init_qpos, fast)
    env._physics.reset(np.array([0]), simulator.init_qpos, fast)
    action = env.full_action_spec.rand()
    after = env.step(action)["next"]
    assert_same_sight(env, after, 0, raw, raw.step(shares(env, action, 0))[0])
    assert after["state"].abs().max() == 10
    assert (after["agents", "observation"].abs().max() > 10) == task.startswith("walker2d")


@pytest.mark.parametrize("task", ["ant_4x2", "humanoid_9_8"])
def test_actions_are_clamped_to_their_bounds(task):
    env, twin = (make_env(f"mamujoco/{task}", num_envs=2, seed=0) for _ in range(2))
    action = twin.full_action_spec.rand()
    for group in env.group_map:
        high = twin.full_action_spec[group, "action"].high
        action[group, "action"] = torch.where(action[group, "action"] > 0, high, -high)
    after = [e.step(e.reset().update(action * k))["next"] for k, e in ((50.0, env), (1.0, twin))]
    for key in ("state", "reward"):
        assert torch.equal(after[0][key], after[1][key])


# Agents and actions per group, where the name of the task does not say it.
SIZES = {
    "coupled_half_cheetah_1p1": {"agents": (2, 6)},
    "humanoid_9_8": {"upper_body": (1, 9), "lower_body": (1, 8)},
    "humanoid_standup_9_8": {"upper_body": (1, 9), "lower_body": (1, 8)},
    "many_segment_ant_2x3": {"agents": (2, 12)},
    "many_segment_ant_3x1": {"agents": (3, 4)},
    "pusher_3p": {"shoulder": (1, 3), "elbow": (1, 1), "wrist": (1, 3)},
}


@every_task
def test_groups(task):
    env = make_env(f"mamujoco/{task}")
    groups = {group.name: group for group in agent_groups(env)}
    sizes = {name: (group.n_agents, group.action_dim) for name, group in groups.items()}
    by_name = TASKS[task][1].removesuffix("d").split("x")
    assert sizes == (SIZES.get(task) or {"agents": tuple(map(int, by_name))})
    names = [agent for agents in env.group_map.values() for agent in agents]
    assert names == [f"agent_{i}" for i in range(len(names))]
    assert {name: len(agents) for name, agents in env.group_map.items()} == {
        name: n_agents for name, (n_agents, _) in sizes.items()
    }
    bound = {"humanoid": 0.4, "pusher": 2.0}.get(task.split("_")[0], 1.0)
    assert all(torch.allclose(g.high, torch.tensor(bound)) for g in groups.values())
    assert all(torch.equal(g.low, -g.high) for g in groups.values())
    moved = np.concatenate([g.actions.ravel() for g in make_team(task).groups.values()])
    assert sorted(moved) == list(range(len(moved)))  # each joint belongs to one agent


def test_groups_of_unequal_actions(monkeypatch):
    monkeypatch.setattr(mamujoco_observations, "_OWN_GROUPS", {})
    with pytest.raises(ValueError, match=r"humanoid_9_8: .*'agents' have \[9, 8\] actions"):
        make_team("humanoid_9_8")


OWN_PARTS = [  # joints of each agent, and their indices in the robot's action
    (
        "half_cheetah_6x1",
        [["ffoot", "bfoot"], ["fthigh", "bthigh"], ["fshin", "bshin"]],
        [[5, 2], [3, 0], [4, 1]],
    ),
    (
        "ant_4x2",
        [
            ["hip_4", "hip_1", "hip_2", "hip_3"],
            ["ankle_4", "ankle_1", "ankle_2", "ankle_3"],
        ],
        [[0, 2, 4, 6], [1, 3, 5, 7]],
    ),
    ("many_segment_swimmer_2x2", [["rot3"], ["rot1"], ["rot0"], ["rot2"]], [[3], [1], [0], [2]]),
    (
        "pusher_3p",
        {
            "rolls": [["r_upper_arm_roll_joint", "r_forearm_roll_joint", "r_wrist_roll_joint"]],
            "others": [
                ["r_shoulder_lift_joint", "r_elbow_flex_joint"],
                ["r_wrist_flex_joint", "r_shoulder_pan_joint"],
            ],
        },
        [[2, 4, 6], [1, 3], [5, 0]],
    ),
]


@pytest.mark.parametrize(("task", "partition", "parts"), OWN_PARTS)
@pytest.mark.parametrize("obsk", [0, 1])
def test_own_partitions_equal_gymnasium_robotics(task, partition, parts, obsk):
    options = {"agent_obsk": obsk, "partition": partition}
    env = make_env(f"mamujoco/{task}", num_envs=N, seed=3, **options)
    assert list(env.group_map) == (list(partition) if task == "pusher_3p" else ["agents"])
    raw = [reference(task, obsk, parts=parts) for _ in range(N)]
    torch.manual_seed(0)
    for _, after, result in follow(env, raw, STEPS):
        assert_same_rewards_and_ends(after, result)


@pytest.mark.parametrize(
    ("task", "local"),
    [
        ("ant_4x2", [["cfrc_ext"], ["qvel", "cfrc_ext"]]),
        ("coupled_half_cheetah_1p1", [["ten_length", "qvel"]]),
        ("half_cheetah_6x1", [["qfrc_actuator", "qpos"], ["qvel"], ["qpos"]]),
        ("humanoid_9_8", [["cvel"], ["cinert", "qvel"]]),
        ("many_segment_ant_2x2", [["qpos"], ["cfrc_ext", "qvel"]]),
        ("reacher_2x1", [["cinert", "qpos"], ["fingertip_dist", "cvel"]]),
    ],
)
def test_local_categories_equal_gymnasium_robotics(task, local):
    obsk = len(local) - 1
    env = make_env(f"mamujoco/{task}", num_envs=N, seed=3, agent_obsk=obsk, local_categories=local)
    raw = [reference(task, obsk, local=local) for _ in range(N)]
    torch.manual_seed(0)
    for _ in follow(env, raw, STEPS):
        pass


EVERYWHERE = {"qpos", "qvel", "qfrc_actuator"}
BODIES = {"cinert", "cvel", "cfrc_ext"}
CATEGORIES = {
    "ant": EVERYWHERE | {"cfrc_ext"},
    "coupled": EVERYWHERE | {"ten_J", "ten_length", "ten_velocity"},
    "humanoid": EVERYWHERE | BODIES,
    "many_segment_ant": EVERYWHERE | {"cfrc_ext"},
    "reacher": EVERYWHERE | BODIES | {"fingertip_dist"},
}


@every_task
def test_every_local_category(task):
    known = {c for robot, some in CATEGORIES.items() if task.startswith(robot) for c in some}
    known = known or EVERYWHERE
    for category in set().union(*CATEGORIES.values()):
        options = {"agent_obsk": 1, "local_categories": [[category]], "agent_one_hot": False}
        if category in known:
            env = make_env(f"mamujoco/{task}", **options)
            data = env.rollout(3)
            assert all(data[group, "observation"].isfinite().all() for group in env.group_map)
        else:
            with pytest.raises(ValueError, match=f"some of .*got .'{category}'"):
                make_env(f"mamujoco/{task}", **options)


def test_last_local_categories_are_repeated():
    short, long = (
        make_env("mamujoco/half_cheetah_6x1", seed=0, agent_obsk=2, local_categories=categories)
        for categories in ([["qpos"], ["qvel"]], [["qpos"], ["qvel"], ["qvel"]])
    )
    assert torch.equal(
        short.reset()["agents", "observation"], long.reset()["agents", "observation"]
    )


def test_pushers_joints_of_one_label_have_one_order():
    """Gymnasium-robotics sorts joints by label, and three of them share one."""
    columns = [make_team("pusher_3p").groups["shoulder"].observations for _ in range(5)]
    for one in columns:
        assert one[0, :6].tolist() == [2, 9, 0, 7, 1, 8]


@pytest.mark.parametrize(
    ("task", "size"), [("many_segment_ant_1x4", (1, 16)), ("many_segment_swimmer_3x4", (3, 4))]
)
def test_many_segments_of_any_number_equal_gymnasium_robotics(task, size):
    env = make_env(f"mamujoco/{task}", num_envs=N, seed=3)
    assert env.full_action_spec["agents", "action"].shape == (N, *size)
    raw = [reference(task) for _ in range(N)]
    torch.manual_seed(0)
    for _, after, result in follow(env, raw, STEPS):
        assert_same_rewards_and_ends(after, result)


def test_jacobian_of_the_tendon_with_and_without_zeros():
    """Older versions of MuJoCo have all entries, newer ones those of six joints."""
    robot = make_team("coupled_half_cheetah_1p1").robot
    dense = np.zeros((2, 18))
    dense[:, [0, 1, 2, 9, 10, 11]] = sparse = np.arange(12.0).reshape(2, 6)
    for given in (dense[:, None], sparse):
        np.testing.assert_array_equal(robot.jacobian({"ten_J": given}), dense)


@pytest.mark.parametrize(("task", "limit"), [("reacher_2x1", 50), ("pusher_3p", 100)])
def test_time_limits_are_those_of_gymnasium(task, limit):
    assert make_env(f"mamujoco/{task}").rollout(limit + 1).shape[1] == limit
    assert make_env(f"mamujoco/{task}", max_steps=7).rollout(limit).shape[1] == 7


@pytest.mark.parametrize("full", [None, "full"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_full_observation(full, one_hot):
    env = make_env("mamujoco/walker2d_2x3", num_envs=3, agent_obsk=full, agent_one_hot=one_hot)
    data = env.rollout(5)
    seen, state = data["agents", "observation"], data["state"]
    for agent in range(2):
        assert torch.equal(seen[:, :, agent, : state.shape[-1]], state)
    assert seen.shape[-1] == state.shape[-1] + 2 * one_hot
    check_env_specs(env)


def test_no_one_hot_and_padding():
    env = make_env("mamujoco/ant_8x1", agent_one_hot=False)
    seen = env.reset()["agents", "observation"]
    assert seen.shape == (1, 8, 20)  # of an ankle: angle, velocity, 3 bodies with 6 forces each
    hips = [0, 2, 4, 6]
    assert not seen[:, hips, 14:].any()  # 2 bodies


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent_obsk": -1}, r"`agent_obsk` to be an integer >= 0.*got -1"),
        ({"agent_obsk": 1.5}, r"`agent_obsk`.*got 1.5"),
        ({"agent_obsk": True}, r"`agent_obsk`.*got True"),
        ({"agent_obsk": "all"}, r"`agent_obsk`.*'full' for the state, got 'all'"),
        ({"global_categories": "qpos"}, r"`global_categories`.*sequence.*got 'qpos'"),
        ({"global_categories": ("qpos", "cvel")}, r"\('qpos', 'qvel'\), got \('qpos', 'cvel'\)"),
        ({"local_categories": "qpos"}, r"`local_categories`.*one sequence.*got 'qpos'"),
        ({"local_categories": ["qpos"]}, r"`local_categories`.*sequence of.*got 'qpos'"),
        ({"local_categories": []}, r"`local_categories`.*at most 1.*got \[\]"),
        ({"local_categories": [["qpos"]] * 2}, r"at most 1 with `agent_obsk=0`, got \[\["),
        ({"local_categories": [["cvel"]]}, r"\('qfrc_actuator', 'qpos', 'qvel'\), got \['cvel'\]"),
        ({"agent_obsk": None, "local_categories": [["qpos"]]}, r"at most 0 with `agent_obsk=None`"),
        ({"partition": [["thigh_joint"], ["leg_join"]]}, r"`partition`.* 'leg_join'; did you mean"),
        ({"partition": [["thigh_joint"], ["leg_joint"]]}, r"one agent, got 'foot_joint' 0 times"),
        (
            {"partition": [["thigh_joint"] * 2]},
            r"got 'thigh_joint' 2 times. Joints: thigh_joint, leg",
        ),
        (
            {"partition": [["thigh_joint", "leg_joint"], ["foot_joint"]]},
            r"'agents' have \[2, 1\] actions, expected equal numbers: give a mapping",
        ),
        ({"partition": {"state": [["foot_joint"]]}}, r"other than \('state', .*got 'state': \["),
        ({"partition": {"next": [["foot_joint"]]}}, r"other than .*got 'next': \["),
        ({"partition": {"collector": [["foot_joint"]]}}, r"other than .*got 'collector': \["),
        ({"partition": {"leg.left": [["foot_joint"]]}}, r"names of groups.*got 'leg.left'"),
        ({"partition": {"legs": []}}, r"at least one agent each, got 'legs': \[\]"),
        ({"max_steps": 0}, r"`max_steps` >= 1, got 0"),
        ({"num_threads": 0}, r"`num_threads` >= 1, got 0"),
        ({"agent_obs": 1}, r"'agent_obs'; did you mean 'agent_obsk'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_env("mamujoco/hopper_3x1", **options)


def test_unknown_tasks():
    with pytest.raises(ValueError, match="'ant_4x3'; did you mean 'ant_4x2'"):
        MaMujocoEnv("ant_4x3")
    with pytest.raises(ValueError, match="'mamujoco/hopper_3x2'; did you mean 'mamujoco/hopper"):
        make_env("mamujoco/hopper_3x2")
    with pytest.raises(ValueError, match="unknown environment 'mamujoco/many_segment_ant_0x2'"):
        make_env("mamujoco/many_segment_ant_0x2")
    with pytest.raises(ValueError, match="many_segment_swimmer_1x1: expected at least 2 segments"):
        make_env("mamujoco/many_segment_swimmer_1x1")
    assert {f"mamujoco/{task}" for task in TASKS} <= set(available_envs())


@pytest.mark.parametrize("task", ["hopper_3x1", "humanoid_9_8"])
def test_nan_actions(task):
    env = make_env(f"mamujoco/{task}", num_envs=3, seed=0)
    data = env.reset()
    data = env.step(data.update(env.full_action_spec.rand()))["next"]
    data = data.update(env.full_action_spec.rand())
    group = list(env.group_map)[-1]
    data[group, "action"][1, -1, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{task}: NaN in the action of environment 1 at step 1"):
        env.step(data)


def test_termination_at_the_time_limit_is_not_truncation():
    def play(limit: int) -> TensorDictBase:
        torch.manual_seed(0)
        return make_env("mamujoco/hopper_3x1", seed=0, max_steps=limit).rollout(limit)["next"]

    length = play(1000).shape[1]
    last = play(length)[0, -1]
    assert (last["terminated"].item(), last["truncated"].item()) == (True, False)
    last = play(length - 1)[0, -1]
    assert (last["terminated"].item(), last["truncated"].item()) == (False, True)


def test_seeds_of_a_batch():
    """Every reset continues each simulator's random numbers."""
    env = make_env("mamujoco/hopper_3x1", num_envs=3, seed=5)
    assert len(set(env.seeds)) == 3
    first = [env.reset()["state"] for _ in range(3)]
    assert not torch.equal(first[0], first[1])
    env.set_seed(5)
    assert all(torch.equal(a, env.reset()["state"]) for a in first)
    # A partial reset does not change the random numbers of other simulators.
    env.set_seed(5)
    data = env.reset()
    data = env.reset(data.set("_reset", torch.tensor([[True], [False], [False]])))
    assert torch.equal(data["state"][0], first[1][0])
    assert torch.equal(data["state"][1:], first[0][1:])
    assert torch.equal(env.reset()["state"][1:], first[1][1:])


def test_normalized_observations():
    env = make_env("mamujoco/ant_4x2", num_envs=4, seed=0)
    keys = [("agents", "observation"), "state"]
    normalized = TransformedEnv(env, VecNormV2(in_keys=keys))
    check_env_specs(normalized)
    played = normalized.rollout(200, break_when_any_done=False)
    raw = make_env("mamujoco/ant_4x2", num_envs=4, seed=0).rollout(200, break_when_any_done=False)
    velocities = slice(13, 27)
    assert (raw["state"][:, 100:, velocities].std((0, 1)) > 1.5).any()
    assert ((played["state"][:, 100:, velocities].std((0, 1)) - 1).abs() < 0.5).all()


@pytest.mark.slow
def test_worker_processes():
    workers = ParallelEnv(2, partial(make_env, "mamujoco/hopper_3x1", num_envs=3))
    try:
        workers.set_seed(0)
        played = workers.rollout(10, break_when_any_done=False)
    finally:
        workers.close()
    assert played["agents", "observation"].shape == (2, 3, 10, 3, 5)
    assert not torch.equal(played["state"][0], played["state"][1])
    assert torch.isfinite(played["next", "reward"]).all()


def test_building_writes_no_log_file(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    make_env("mamujoco/half_cheetah_2x3", num_envs=2)
    assert not list(tmp_path.iterdir())
    assert "WARNING" not in "".join(capfd.readouterr())


def test_to_a_device():
    env = make_env("mamujoco/hopper_3x1", num_envs=2)
    assert env.to("cpu") is env
