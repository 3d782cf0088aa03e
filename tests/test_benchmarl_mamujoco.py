"""MA-MuJoCo as tasks of BenchMARL."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("torchrl_agentmixer.benchmarl", reason="needs BenchMARL", exc_type=ImportError)

from benchmarl.algorithms import MappoConfig
from benchmarl.environments import task_config_registry
from benchmarl.experiment import Experiment
from benchmarl.hydra_config import load_task_config_from_hydra
from benchmarl.models import GruConfig, MlpConfig
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException

from tests.test_benchmarl import experiment
from torchrl_agentmixer.benchmarl import AgentMixerConfig, MaMujocoTask
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.envs.mamujoco_tasks import TASKS


def mamujoco(name="half_cheetah_6x1", **changes):
    task = MaMujocoTask[name.upper()].get_from_yaml()
    assert set(changes) <= set(task.config)
    task.config.update({"max_steps": 5, **changes})
    return task


def make(task, num_envs=2):
    return task.get_env_fun(num_envs=num_envs, continuous_actions=True, seed=0, device="cpu")()


def test_every_task_is_registered():
    assert [task.name.lower() for task in MaMujocoTask] == list(TASKS)
    for name in TASKS:
        assert task_config_registry[f"mamujoco/{name}"] is MaMujocoTask[name.upper()]


@pytest.mark.parametrize("name", ["ant_4x2", "humanoid_9_8", "reacher_2x1"])
def test_specs_are_those_of_the_environment(name):
    task = mamujoco(name, max_steps=None)
    env, same = make(task), make_env(f"mamujoco/{name}", num_envs=2, seed=0)
    assert torch.equal(env.reset()["state"], same.reset()["state"])  # of one seed
    data = env.rollout(2)[:, 0]
    assert task.group_map(env) == same.group_map
    for spec in (task.observation_spec(env), task.state_spec(env), task.action_spec(env)):
        assert spec.batch_size == ()
        for key, leaf in spec.items(True, True):
            assert data[key].shape[1:] == leaf.shape
    assert (
        set(task.observation_spec(env).keys()) == set(task.action_spec(env)) == set(env.group_map)
    )
    assert list(task.state_spec(env)) == ["state"]
    assert task.info_spec(env) is task.action_mask_spec(env) is None
    assert task.max_steps(env) == (50 if name == "reacher_2x1" else 1000)
    assert task.supports_continuous_actions()
    assert not task.supports_discrete_actions()


@pytest.mark.parametrize("algorithm", [MappoConfig, AgentMixerConfig])
@pytest.mark.parametrize("name", ["half_cheetah_6x1", "pusher_3p"])
@pytest.mark.parametrize("model", [MlpConfig, GruConfig])
def test_trains_evaluates_and_restores(tmp_path, algorithm, name, model):
    options = {"config": algorithm.get_from_yaml(), "checkpoint_at_end": True, "max_n_iters": 1}
    run = experiment(tmp_path, task=mamujoco(name), model=model, **options)
    before = {g: [p.clone() for p in run.losses[g].parameters()] for g in run.group_map}
    run.run()
    for group, old in before.items():
        assert any((p != q).any() for p, q in zip(run.losses[group].parameters(), old, strict=True))
    (file,) = tmp_path.glob("*/checkpoints/*.pt")
    restored = Experiment.reload_from_file(str(file))
    assert restored.task == mamujoco(name)
    assert restored.total_frames == 40
    restored.close()


def test_evaluated_returns_are_the_robots_rewards(tmp_path):
    run = experiment(tmp_path, task=mamujoco("humanoid_9_8"), evaluation_static=True)
    run.evaluate()
    steps = json.loads(run.logger.json_writer.path.read_text())
    steps = steps["mamujoco"]["humanoid_9_8"]["agentmixer"]["seed_0"]["step_0"]
    run.test_env.set_seed(0)
    rollout = run.test_env.rollout(5, run.algorithm.decentralized(), break_when_any_done=False)
    expected = rollout["next", "reward"].sum((1, 2))
    for key in ("return", "upper_body_return", "lower_body_return"):
        torch.testing.assert_close(torch.tensor(steps[key]), expected, check_dtype=False)


def test_own_partition_and_categories(tmp_path):
    parts = {
        "thighs": [["bthigh", "fthigh"]],
        "others": [["bshin"], ["bfoot"], ["fshin"], ["ffoot"]],
    }
    task = mamujoco(partition=parts, local_categories=[["qvel"]], agent_one_hot=False)
    run = experiment(tmp_path, task=task, max_n_iters=1)
    batch = run.test_env.rollout(2)
    run.run()
    assert batch["thighs", "observation"].shape[-2:] == (1, 2)
    assert batch["others", "observation"].shape[-2:] == (4, 1)


def test_frames_of_a_video(tmp_path):
    task = mamujoco()
    env = make(task)
    env.reset()
    try:
        frame = task.render_callback(None, env, None)
    except RuntimeError:
        pytest.skip("MuJoCo draws with EGL or OSMesa, and this machine has neither")
    assert task.has_render(env)
    assert frame.shape == (480, 480, 3)


def test_yaml_of_the_user(tmp_path):
    file = tmp_path / "task.yaml"
    task = MaMujocoTask.ANT_4X2.get_from_yaml()
    file.write_text(json.dumps({**task.config, "agent_obsk": 2}))
    assert MaMujocoTask.ANT_4X2.get_from_yaml(str(file)).config["agent_obsk"] == 2
    file.write_text(json.dumps({**task.config, "agent_obs": 2}))
    with pytest.raises(TypeError, match="agent_obs"):
        MaMujocoTask.ANT_4X2.get_from_yaml(str(file))


def test_hydra():
    with initialize_config_module("benchmarl.conf", version_base=None):
        for name in TASKS:
            config = compose("config", ["algorithm=agentmixer", f"task=mamujoco/{name}"])
            task = load_task_config_from_hydra(config.task, f"mamujoco/{name}")
            assert task == MaMujocoTask[name.upper()].get_from_yaml()
        overrides = ["algorithm=agentmixer", "task=mamujoco/ant_4x2", "task.max_steps=many"]
        with pytest.raises(ConfigCompositionException, match=r"task\.max_steps=many"):
            compose("config", overrides)
