"""``examples/train.py`` and ``torchrl_agentmixer.experiment``: resume, loggers, early stopping."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from torchrl_agentmixer.algorithms import available_algorithms, default_options
from torchrl_agentmixer.config import ExperimentConfig
from torchrl_agentmixer.envs import make_env, normalize_observations, observation_normalizer
from torchrl_agentmixer.experiment import run
from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import RunCheckpoints

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TINY = (
    "env=climbing",
    "algorithm=mappo",
    "algorithm.epochs=1",
    "env.num_envs=4",
    "env.eval_envs=2",
    "env.total_frames=80",
    "env.frames_per_batch=20",
    "env.eval_interval=20",
    "num_threads=1",
    "plots=false",
)


def example(name):
    spec = importlib.util.spec_from_file_location(f"{name}_script", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return example("train")


@pytest.fixture
def config(script):
    return lambda *overrides: script.compose(overrides)


@pytest.fixture
def resume(config):
    """Resume a run as the command line does."""

    def resume(folder, *overrides):
        overrides = (f"resume={folder}", "plots=false", "num_threads=1", *overrides)
        changed = [override.partition("=")[0] for override in overrides]
        return run(config(*overrides), folder, changed=changed)

    return resume


def rates(folder):
    _, state = RunCheckpoints(folder / "checkpoints").load_newest()
    optimizer = state["ranks"][0]["algorithm"]["optimizers"]["optimizer"]
    return {group["lr"] for group in optimizer["param_groups"]}


def saved(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_resumed_run_takes_a_lower_learning_rate_and_logs_it(tmp_path, config, resume):
    run(config(*TINY, "max_time=1e-6", "logger=tensorboard"), tmp_path)
    assert read_metrics(tmp_path)["frames"] == [20]
    resume(tmp_path, "algorithm.lr=1e-5", "max_time=1e-6")
    resume(tmp_path)  # keeps it
    assert read_metrics(tmp_path)["frames"] == [20, 40, 60, 80]
    assert rates(tmp_path) == {1e-5}
    assert saved(tmp_path)["algorithm"]["lr"] == 1e-5
    assert saved(tmp_path)["changes"] == [{"frames": 20, "before": {"algorithm.lr": 5e-4}}]
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 3  # the logger is kept


def test_other_changes_of_a_resumed_run_are_errors(tmp_path, config, resume):
    run(config(*TINY, "max_time=1e-6"), tmp_path)
    before = saved(tmp_path)
    for change in ("env.num_envs=2", "seed=1", "algorithm=ippo"):
        with pytest.raises(ValueError, match=f"'{change.partition('=')[0]}' cannot change when"):
            resume(tmp_path, change)
    with pytest.raises(ValueError, match="expected the state of the same method"):
        resume(tmp_path, "algorithm.critic_hidden=[8]")
    assert saved(tmp_path) == before
    resume(tmp_path)
    assert read_metrics(tmp_path)["frames"] == [20, 40, 60, 80]


def test_early_stopping_by_config_and_resume_without_it(tmp_path, config, resume):
    run(config(*TINY, "early_stopping.metric=eval_length", "early_stopping.target=1"), tmp_path)
    assert read_metrics(tmp_path)["frames"] == [20]
    assert (tmp_path / "algorithm.pt").exists()
    resume(tmp_path, "max_time=1e-6")
    assert read_metrics(tmp_path)["frames"] == [20]
    resume(tmp_path, "early_stopping.target=null", "max_time=1e-6")
    assert read_metrics(tmp_path)["frames"] == [20, 40]
    assert not (tmp_path / "algorithm.pt").exists()  # it is not complete any more
    assert saved(tmp_path)["changes"][0]["before"] == {"early_stopping.target": 1}


def test_a_missing_package_is_an_error_before_anything_is_written(tmp_path, config, monkeypatch):
    monkeypatch.setattr("torchrl_agentmixer.training.logging.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        run(config(*TINY, "logger=[wandb,tensorboard]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_normalized_observations_are_resumed_and_deployed(tmp_path, config, resume):
    options = (*TINY, "env=bridge_crossing", "normalize_observations=true")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(config(*options), whole)
    run(config(*options, "max_time=1e-6"), stopped)
    assert not (stopped / "normalization.pt").exists()
    resume(stopped)
    for name in ("algorithm.pt", "normalization.pt"):
        torch.testing.assert_close(load(whole / name), load(stopped / name), rtol=0, atol=0)
    assert read_metrics(whole)["eval_return"] == read_metrics(stopped)["eval_return"]

    # Loaded and exported actors have the normalization of training.
    score = example("evaluate_decentralized").main(whole, 2)
    assert score == pytest.approx(read_metrics(whole)["eval_score"][-1])
    env = normalize_observations(
        make_env("grid/bridge_crossing"), like=load(whole / "normalization.pt")
    )
    loc, scale, bound = observation_normalizer(env).loc_scale_bound()["agents"]
    card = json.loads(example("export_actors").main(whole, tmp_path / "team").read_text())
    for i, agent in enumerate(card["agents"]):
        normalization = agent["normalization"]
        torch.testing.assert_close(torch.tensor(normalization["loc"]).flatten(), loc[i])
        torch.testing.assert_close(torch.tensor(normalization["scale"]).flatten(), scale[i])
        assert normalization["bound"] == bound == 10.0


def load(path):
    return torch.load(path, weights_only=True)


def test_config_json_has_all_hyperparameters(tmp_path, config):
    run(config(*TINY, "max_time=1e-6"), tmp_path)
    found = saved(tmp_path)
    assert found["algorithm"].keys() == {"name", *default_options("mappo")}
    assert found["algorithm"]["epochs"] == 1
    assert found["decentralized_execution"] is True
    assert found["checkpoint_interval"] == found["env"]["eval_interval"] == 20


def test_without_hydra(tmp_path, config):
    """The same run from Python as from the command line."""
    composed = config(*TINY)
    env, algorithm = vars(composed.env), composed.algorithm
    values = {"env": env, "algorithm": algorithm, "num_threads": 1, "plots": False}
    rows = [
        run(ExperimentConfig.from_dict(values), tmp_path / "python"),
        run(composed, tmp_path / "hydra"),
    ]
    first, second = ({k: v for k, v in row.items() if k[:3] != "fps"} for row in rows)
    assert first == second
    with pytest.raises(ValueError, match=r"'env.num_env'.*'env.num_envs'"):
        ExperimentConfig.from_dict({**values, "env": {**env, "num_env": 1}})


def test_every_algorithm_has_a_config_node(script):
    for name in available_algorithms():
        assert script.compose([f"algorithm={name}"]).algorithm["name"] == name
