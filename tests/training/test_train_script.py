"""What ``examples/train.py`` puts together: loggers, early stopping, and changes on resuming."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from torchrl_agentmixer.envs import make_env, normalize_observations, observation_normalizer
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


def config(*overrides):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(EXAMPLES / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def resume(script, folder, *overrides):
    """As the command line does."""
    overrides = (f"resume={folder}", "plots=false", "num_threads=1", *overrides)
    merged, changed = script.continuation(config(*overrides), overrides)
    return script.run(merged, folder, changed=changed)


def rates(folder):
    _, parts = RunCheckpoints(folder / "checkpoints").load_newest()
    return {group["lr"] for group in parts["algorithm"]["optimizer"]["param_groups"]}


def saved(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_resumed_run_takes_a_lower_learning_rate_and_notes_it(tmp_path, script):
    script.run(config(*TINY, "max_time=1e-6", "logger=tensorboard"), tmp_path)
    assert read_metrics(tmp_path)["frames"] == [20]
    resume(script, tmp_path, "algorithm.lr=1e-5", "max_time=1e-6")
    resume(script, tmp_path)  # and keeps it
    assert read_metrics(tmp_path)["frames"] == [20, 40, 60, 80]
    assert rates(tmp_path) == {1e-5}
    assert saved(tmp_path)["algorithm"]["lr"] == 1e-5
    assert saved(tmp_path)["changes"] == [{"frames": 20, "before": {"algorithm.lr": 5e-4}}]
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 3  # the logger stays


def test_what_makes_it_another_run_is_refused(tmp_path, script):
    script.run(config(*TINY, "max_time=1e-6"), tmp_path)
    before = saved(tmp_path)
    for change in ("env.total_frames=100", "seed=1", "algorithm=ippo"):
        with pytest.raises(ValueError, match=f"'{change.partition('=')[0]}' cannot change when"):
            resume(script, tmp_path, change)
    with pytest.raises(ValueError, match="expected the state of the same method"):
        resume(script, tmp_path, "algorithm.critic_hidden=[8]")
    assert saved(tmp_path) == before
    resume(script, tmp_path)
    assert read_metrics(tmp_path)["frames"] == [20, 40, 60, 80]


def test_early_stopping_by_config_and_on_without_it(tmp_path, script):
    script.run(
        config(*TINY, "early_stopping.metric=eval_length", "early_stopping.target=1"), tmp_path
    )
    assert read_metrics(tmp_path)["frames"] == [20]
    assert (tmp_path / "algorithm.pt").exists()
    resume(script, tmp_path, "max_time=1e-6")
    assert read_metrics(tmp_path)["frames"] == [20]
    resume(script, tmp_path, "early_stopping.target=null", "max_time=1e-6")
    assert read_metrics(tmp_path)["frames"] == [20, 40]
    assert not (tmp_path / "algorithm.pt").exists()  # it is no longer at its end
    assert saved(tmp_path)["changes"][0]["before"] == {"early_stopping.target": 1}


def test_a_run_of_before_there_were_these_fields_goes_on(tmp_path, script):
    script.run(config(*TINY, "max_time=1e-6"), tmp_path)
    older = saved(tmp_path)
    for field in script.KEPT:
        del older[field]
    (tmp_path / "config.json").write_text(json.dumps(older))
    resume(script, tmp_path)
    assert read_metrics(tmp_path)["frames"] == [20, 40, 60, 80]


def test_a_missing_package_is_told_before_anything_is_written(tmp_path, script, monkeypatch):
    monkeypatch.setattr("torchrl_agentmixer.training.logging.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        script.run(config(*TINY, "logger=[wandb,tensorboard]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_normalized_observations_are_resumed_and_deployed(tmp_path, script):
    options = (*TINY, "env=bridge_crossing", "normalize_observations=true")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    script.run(config(*options), whole)
    script.run(config(*options, "max_time=1e-6"), stopped)
    assert not (stopped / "normalization.pt").exists()
    resume(script, stopped)
    for name in ("algorithm.pt", "normalization.pt"):
        torch.testing.assert_close(load(whole / name), load(stopped / name), rtol=0, atol=0)
    assert read_metrics(whole)["eval_return"] == read_metrics(stopped)["eval_return"]

    # A team that is loaded, and one that is exported, see what the team in training saw.
    score = example("evaluate_decentralized").main(whole, 2)
    assert score == pytest.approx(read_metrics(whole)["eval_score"][-1])
    env = normalize_observations(
        make_env("grid/bridge_crossing"), like=load(whole / "normalization.pt")
    )
    loc, scale = observation_normalizer(env).loc_and_scale()["agents"]
    card = json.loads(example("export_actors").main(whole, tmp_path / "team").read_text())
    for i, agent in enumerate(card["agents"]):
        told = agent["normalization"]
        torch.testing.assert_close(torch.tensor(told["loc"]).flatten(), loc[i])
        torch.testing.assert_close(torch.tensor(told["scale"]).flatten(), scale[i])


def load(path):
    return torch.load(path, weights_only=True)
