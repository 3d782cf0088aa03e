"""Comparison of MA-MuJoCo batches with gymnasium-robotics."""

from __future__ import annotations

import os
from ctypes.util import find_library
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics")

import mujoco
from gymnasium_robotics import mamujoco_v1
from tensordict import TensorDictBase
from torchrl.envs import ParallelEnv, TransformedEnv, VecNormV2
from torchrl.envs.utils import check_env_specs

from torchrl_agentmixer.envs import (
    MaMujocoEnv,
    available_envs,
    make_env,
    mamujoco_observations,
    mamujoco_physics,
)
from torchrl_agentmixer.envs.mamujoco_observations import TASKS, agent_indices, quiet_compiler
from torchrl_agentmixer.envs.simulation import load_simulation_state, simulation_state
from torchrl_agentmixer.groups import agent_groups

# Steps of each comparison; episodes have at most 1000.
STEPS = int(os.environ.get("MAMUJOCO_STEPS", "100"))
N = 2
every_task = pytest.mark.parametrize("task", list(TASKS))
needs_batch = pytest.mark.skipif(find_spec("mujoco.batch") is None, reason="MuJoCo before 3.17")


@pytest.fixture
def loop(monkeypatch):
    """Make environments as with a MuJoCo that lacks ``mujoco.batch``."""

    def make(task: str, **options) -> MaMujocoEnv:
        with monkeypatch.context() as patch:
            patch.setattr(mamujoco_physics, "find_spec", lambda name: None)
            env = MaMujocoEnv(task, **options)
        assert isinstance(env._physics, mamujoco_physics.LoopPhysics)
        return env

    return make


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


@pytest.mark.parametrize("call", ["mj_step", "mj_forward"])
def test_errors_of_the_loop_name_environment_and_step(call, loop, monkeypatch):
    env = loop("hopper_3x1", num_envs=3, seed=0)
    data = env.rollout(2)["next"][:, -1].select("agents", "state")
    failing = env._physics._data[2]

    def fail(model, simulator, **options):
        if simulator is failing:
            raise ArithmeticError("singular")

    monkeypatch.setattr(mujoco, call, fail)
    message = "hopper_3x1: environment 2 failed at step 2 .*ArithmeticError: singular"
    with pytest.raises(RuntimeError, match=message) as caught:
        env.step(data.update(env.full_action_spec.rand())) if call == "mj_step" else env.reset()
    assert isinstance(caught.value.__cause__, ArithmeticError)


@needs_batch
@pytest.mark.parametrize("call", ["step", "forward"])
def test_errors_of_the_batch_name_environment_and_step(call, monkeypatch):
    env = make_env("mamujoco/hopper_3x1", num_envs=3, seed=0)
    data = env.rollout(2)["next"][:, -1].select("agents", "state")
    batch = env._physics._batch

    def fail(*args, **options):
        raise mujoco.batch.SimulationError(np.array([2]), "singular")

    monkeypatch.setattr(batch, call, fail)
    monkeypatch.setattr(batch, "error", "singular in simulation {}".format)
    message = "hopper_3x1: environment 2 failed at step 2 .*singular in simulation 2"
    with pytest.raises(RuntimeError, match=message) as caught:
        env.step(data.update(env.full_action_spec.rand())) if call == "step" else env.reset()
    assert isinstance(caught.value.__cause__, mujoco.batch.SimulationError)


def assert_equal_runs(envs: list[MaMujocoEnv], steps: int) -> None:
    """Observations, rewards, ends and simulation states are bit-equal, also after resets."""
    data = [env.reset() for env in envs]
    for _ in range(steps):
        action = envs[0].full_action_spec.rand()
        pairs = [e.step_and_maybe_reset(d.update(action)) for e, d in zip(envs, data, strict=True)]
        data = [after for _, after in pairs]
        for stepped, after in pairs[1:]:
            assert (stepped["next"] == pairs[0][0]["next"]).all()
            assert (after == data[0]).all()
    first = simulation_state(envs[0])
    for state in map(simulation_state, envs[1:]):
        assert state["random"] == first["random"]
        for key in ("rows", "steps", "physics", "positions"):
            assert torch.equal(state[key], first[key])


@needs_batch
@every_task
def test_threads_and_the_loop_are_equal(task, loop):
    """Any number of threads, and the loop for MuJoCo without ``mujoco.batch``."""
    torch.manual_seed(0)
    options = {"num_envs": 5, "seed": 1, "max_steps": 40}
    envs = [make_env(f"mamujoco/{task}", num_threads=n, **options) for n in (1, 2, 9)]
    assert_equal_runs([*envs, loop(task, **options)], STEPS)


@needs_batch
@pytest.mark.parametrize("task", ["ant_4x2", "half_cheetah_6x1", "humanoid_9_8"])
def test_resume_in_the_other_kind(task, loop):
    """A simulation state of a batch resumes in the loop, and the reverse."""
    torch.manual_seed(0)
    batch = make_env(f"mamujoco/{task}", num_envs=3, seed=1)
    other = loop(task, num_envs=3, seed=2)
    for source, target in ((batch, other), (other, batch)):
        data = source.rollout(30, break_when_any_done=False)["next"][:, -1]
        assert load_simulation_state(target, simulation_state(source))
        partial_reset = data.select("agents", "upper_body", "lower_body", "state", strict=False)
        partial_reset["_reset"] = torch.tensor([[False], [True], [False]])
        data = [env.reset(partial_reset.clone()) for env in (source, target)]
        assert (data[0] == data[1]).all()
        for _ in range(30):
            action = source.full_action_spec.rand()
            envs = zip((source, target), data, strict=True)
            data = [env.step_and_maybe_reset(d.update(action))[1] for env, d in envs]
            assert (data[0] == data[1]).all()


@needs_batch
@pytest.mark.parametrize("task", ["ant_4x2", "half_cheetah_6x1", "humanoid_9_8"])
def test_unstable_simulations_are_equal(task, loop):
    """MuJoCo resets a simulation whose velocities are too large."""
    options = {"num_envs": 3, "seed": 1}
    envs = [make_env(f"mamujoco/{task}", num_threads=2, **options), loop(task, **options)]
    action = envs[0].full_action_spec.rand()
    with quiet_compiler():
        after = []
        for env in envs:
            data = env.reset()
            model = env._robot.simulator.model
            qpos = env._robot.simulator.init_qpos
            env._physics.reset(np.array([1]), qpos, np.full(model.nv, 1e9))
            after.append(env.step(data.update(action))["next"])
    assert torch.isfinite(after[0]["state"]).all()
    assert (after[0] == after[1]).all()


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


@pytest.mark.skipif(
    not (find_library("EGL") or find_library("OSMesa")),
    reason="MuJoCo draws with EGL or OSMesa, and this machine has neither",
)
def test_rendering_one_robot_does_not_change_another():
    tasks = ("ant_4x2", "hopper_3x1")
    env, other = (make_env(f"mamujoco/{task}", num_envs=2, seed=0) for task in tasks)
    env.reset()
    other.reset()
    before = env.render()
    assert before.shape == (480, 480, 3)
    other.render()
    np.testing.assert_array_equal(env.render(), before)
    assert (env.render(1) != before).any()
    np.testing.assert_array_equal(env.render(), before)
    env.close()
    other.close()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of a partly built one
def test_render_without_opengl(monkeypatch):
    env = make_env("mamujoco/hopper_3x1", seed=0)
    env.reset()
    monkeypatch.setenv("MUJOCO_GL", "none")
    with pytest.raises(RuntimeError, match=r"MUJOCO_GL=none.*libegl1\).*libosmesa6"):
        env.render()


def test_close_closes_the_renderer(monkeypatch):
    env = make_env("mamujoco/hopper_3x1", num_envs=2)
    closed = []
    monkeypatch.setattr(env._robot.simulator, "close", partial(closed.append, 0))
    env.close()
    assert closed == [0]
    assert env.is_closed


def test_building_writes_no_log_file(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    make_env("mamujoco/half_cheetah_2x3", num_envs=2)
    assert not list(tmp_path.iterdir())
    assert "WARNING" not in "".join(capfd.readouterr())


def test_to_a_device():
    env = make_env("mamujoco/hopper_3x1", num_envs=2)
    assert env.to("cpu") is env
