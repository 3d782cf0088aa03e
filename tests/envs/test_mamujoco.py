"""Comparison of MA-MuJoCo batches with gymnasium-robotics."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics")

from gymnasium_robotics import mamujoco_v1
from tensordict import TensorDictBase
from torchrl.envs import ParallelEnv, TransformedEnv, VecNormV2
from torchrl.envs.utils import check_env_specs

from torchrl_agentmixer.envs import MaMujocoEnv, available_envs, make_env, mamujoco_observations
from torchrl_agentmixer.envs.mamujoco_observations import TASKS, agent_indices, quiet_compiler
from torchrl_agentmixer.groups import agent_groups

# Steps of each comparison; episodes have at most 1000.
STEPS = int(os.environ.get("MAMUJOCO_STEPS", "100"))
N = 2
every_task = pytest.mark.parametrize("task", list(TASKS))


def reference(task: str, obsk: int = 0, categories: tuple[str, ...] = ()):
    robot, partition = TASKS[task]
    each = None
    if task in ("ant_8x1", "humanoid_17x1", "walker2d_6x1"):
        (joints,), edges, root = mamujoco_v1.get_parts_and_edges(robot, None)
        each = {"partition": [(joint,) for joint in joints], "edges": edges, "globals": root}
    with quiet_compiler():
        return mamujoco_v1.parallel_env(
            robot,
            partition,
            agent_obsk=obsk,
            agent_factorization=each,
            global_categories=categories,
        )


def follow(env: MaMujocoEnv, references: list, steps: int, actions: float = 1.0):
    """Step ``env`` and gymnasium-robotics; yield both tensordicts and the references' results.

    Episodes start anew in both as they end.
    """
    data = env.reset()
    for raw, seed in zip(references, env.seeds, strict=True):
        assert_same_sight(env, data, env.seeds.index(seed), raw, raw.reset(seed=seed)[0])
    for _ in range(steps):
        action = env.full_action_spec.rand() * actions
        stepped, data = env.step_and_maybe_reset(data.update(action))
        for i, raw in enumerate(references):
            result = raw.step(shares(env, action, i))
            yield i, stepped["next"][i], result
            assert_same_sight(env, stepped["next"], i, raw, result[0])
            if stepped["next", "done"][i]:
                assert_same_sight(env, data, i, raw, raw.reset()[0])


def shares(env: MaMujocoEnv, action: TensorDictBase, i: int) -> dict[str, np.ndarray]:
    return {
        agent: action[group, "action"][i, k].numpy()
        for group, agents in env.group_map.items()
        for k, agent in enumerate(agents)
    }


def assert_same_sight(env, data, i, raw, observations):
    """Observations, padding, one-hot and state are bit-equal in float32."""
    np.testing.assert_array_equal(data["state"][i], raw.state().astype(np.float32))
    names = [agent for agents in env.group_map.values() for agent in agents]
    for group, agents in env.group_map.items():
        for k, agent in enumerate(agents):
            seen = data[group, "observation"][i, k].numpy()
            expected = observations[agent].astype(np.float32)
            np.testing.assert_array_equal(seen[: len(expected)], expected)
            assert not seen[len(expected) : -len(names)].any()
            assert seen[-len(names) :].tolist() == [float(name == agent) for name in names]


@every_task
@pytest.mark.parametrize(("obsk", "categories"), [(0, ()), (1, ("qpos", "qvel"))])
def test_equal_to_gymnasium_robotics(task, obsk, categories):
    options = {"agent_obsk": obsk, "global_categories": categories}
    env = make_env(f"mamujoco/{task}", num_envs=N, seed=3, **options)
    raw = [reference(task, obsk, categories) for _ in range(N)]
    torch.manual_seed(0)
    for _, after, (_, rewards, terminated, truncated, _) in follow(env, raw, STEPS):
        assert after["reward"].item() == np.float32(rewards["agent_0"])
        assert after["terminated"].item() == terminated["agent_0"]
        assert after["truncated"].item() == (truncated["agent_0"] and not terminated["agent_0"])


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


@every_task
def test_groups(task):
    env = make_env(f"mamujoco/{task}")
    groups = {group.name: group for group in agent_groups(env)}
    if task == "humanoid_9_8":
        sizes = {name: (group.n_agents, group.action_dim) for name, group in groups.items()}
        assert sizes == {"upper_body": (1, 9), "lower_body": (1, 8)}
        assert env.group_map == {"upper_body": ["agent_0"], "lower_body": ["agent_1"]}
    else:
        n_agents, joints = map(int, TASKS[task][1].removesuffix("d").split("x"))
        assert (groups["agents"].n_agents, groups["agents"].action_dim) == (n_agents, joints)
        assert env.group_map == {"agents": [f"agent_{i}" for i in range(n_agents)]}
    bound = 0.4 if "humanoid" in task else 1.0
    assert all(torch.allclose(g.high, torch.tensor(bound)) for g in groups.values())
    assert all(torch.equal(g.low, -g.high) for g in groups.values())
    moved = np.concatenate([g.actions.ravel() for g in agent_indices(task)[1].values()])
    assert sorted(moved) == list(range(len(moved)))  # each joint belongs to one agent


def test_groups_of_unequal_actions(monkeypatch):
    monkeypatch.setattr(mamujoco_observations, "_OWN_GROUPS", {})
    with pytest.raises(ValueError, match=r"humanoid_9_8: .*'agents' have \[9, 8\] actions"):
        agent_indices("humanoid_9_8")


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
