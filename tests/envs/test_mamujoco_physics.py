"""Physics of MA-MuJoCo: threads, the loop for older versions of MuJoCo, and rendering."""

from __future__ import annotations

import os
from ctypes.util import find_library
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics")

import gymnasium
import mujoco

from torchrl_agentmixer.envs import MaMujocoEnv, make_env, mamujoco_physics
from torchrl_agentmixer.envs.mamujoco_tasks import TASKS, quiet_compiler
from torchrl_agentmixer.envs.simulation import load_simulation_state, simulation_state

# Steps of each comparison.
STEPS = int(os.environ.get("MAMUJOCO_STEPS", "100"))
SOME_TASKS = ("ant_4x2", "coupled_half_cheetah_1p1", "half_cheetah_6x1", "humanoid_9_8")
needs_opengl = pytest.mark.skipif(
    not (find_library("EGL") or find_library("OSMesa")),
    reason="MuJoCo draws with EGL or OSMesa, and this machine has neither",
)
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
@pytest.mark.parametrize("task", list(TASKS))
def test_threads_and_the_loop_are_equal(task, loop):
    """Any number of threads, and the loop for MuJoCo without ``mujoco.batch``."""
    torch.manual_seed(0)
    options = {"num_envs": 5, "seed": 1, "max_steps": 40}
    envs = [make_env(f"mamujoco/{task}", num_threads=n, **options) for n in (1, 2, 9)]
    assert_equal_runs([*envs, loop(task, **options)], STEPS)


@needs_batch
@pytest.mark.parametrize("task", [*SOME_TASKS, "pusher_3p"])
def test_resume_in_the_other_kind(task, loop):
    """A simulation state of a batch resumes in the loop, and the reverse."""
    torch.manual_seed(0)
    batch = make_env(f"mamujoco/{task}", num_envs=3, seed=1)
    other = loop(task, num_envs=3, seed=2)
    for source, target in ((batch, other), (other, batch)):
        data = source.rollout(30, break_when_any_done=False)["next"][:, -1]
        assert load_simulation_state(target, simulation_state(source))
        partial_reset = data.select(*source.group_map, "state")
        partial_reset["_reset"] = torch.tensor([[False], [True], [False]])
        data = [env.reset(partial_reset.clone()) for env in (source, target)]
        assert (data[0] == data[1]).all()
        for _ in range(30):
            action = source.full_action_spec.rand()
            envs = zip((source, target), data, strict=True)
            data = [env.step_and_maybe_reset(d.update(action))[1] for env, d in envs]
            assert (data[0] == data[1]).all()


@needs_batch
@pytest.mark.parametrize("task", SOME_TASKS)
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


@needs_opengl
@pytest.mark.parametrize("kind", ["batch", "loop"])
@pytest.mark.parametrize("task", ["ant_4x2", "half_cheetah_6x1", "humanoid_9_8"])
def test_images_equal_those_of_gymnasium(task, kind, loop):
    """Also of a robot away from the center, and after the image of another."""
    env = (loop if kind == "loop" else MaMujocoEnv)(task, num_envs=2, seed=0)
    robot = TASKS[task][0]
    with quiet_compiler():
        raw = [gymnasium.make(f"{robot}-v5", render_mode="rgb_array").unwrapped for _ in range(2)]
    data = env.reset()
    for simulator, seed in zip(raw, env.seeds, strict=True):
        simulator.reset(seed=seed)
    for k in range(20):
        action = env.full_action_spec.rand()
        data = env.step(data.update(action))["next"]
        for i, simulator in enumerate(raw):
            simulator.step(env._actions[i])
        if k in (9, 19):
            for i in (0, 1, 0):
                image = env.render(i)
                raw[i].mujoco_renderer._get_viewer("rgb_array").make_context_current()
                np.testing.assert_array_equal(image, raw[i].render())
    for simulator in raw:
        simulator.close()
    env.close()


@needs_opengl
@pytest.mark.parametrize("task", ["coupled_half_cheetah_1p1", "many_segment_ant_2x1", "pusher_3p"])
def test_images_of_other_robots(task):
    env = make_env(f"mamujoco/{task}", num_envs=2, seed=0)
    env.rollout(20)
    images = [env.render(i) for i in (0, 1, 0)]
    np.testing.assert_array_equal(images[0], images[2])
    assert images[0].shape == (480, 480, 3)
    assert (images[0] != images[1]).any()
    env.close()


@needs_opengl
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


@needs_opengl
def test_close_closes_the_simulators(monkeypatch):
    env = make_env("mamujoco/hopper_3x1", num_envs=2)
    env.reset()
    env.render(1)
    closed = []
    for name, simulator in {"robot": env._robot.simulator, **env._cameras}.items():
        monkeypatch.setattr(simulator, "close", partial(closed.append, name))
    env.close()
    assert closed == ["robot", 1]
    assert env.is_closed
