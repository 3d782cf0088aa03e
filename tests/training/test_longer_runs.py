"""Resume with the run's own options, train longer, start from another run; results at the end."""

from __future__ import annotations

import json

import pytest
import torch
from test_train_script import TINY, example

from torchrl_agentmixer.config import ExperimentConfig
from torchrl_agentmixer.envs import MatrixGameEnv, make_env, observation_normalizer
from torchrl_agentmixer.experiment import prepare, run
from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import LoopConfig, RunCheckpoints, RunDirectory, train


@pytest.fixture(scope="module")
def config():
    script = example("train")
    return lambda *overrides: script.compose(overrides)


@pytest.fixture
def resume(config):
    """Resume a run as the command line does."""

    def resume(folder, *overrides):
        overrides = (f"resume={folder}", *overrides)
        changed = [override.partition("=")[0] for override in overrides]
        return run(config(*overrides), folder, changed=changed)

    return resume


def content(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def saved(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_resumed_run_keeps_its_threads_and_plots(tmp_path, config, resume):
    run(config(*TINY, "num_threads=2", "max_time=1e-6"), tmp_path)
    resume(tmp_path, "max_time=1e-6")
    assert torch.get_num_threads() == 2
    assert (saved(tmp_path)["num_threads"], saved(tmp_path)["plots"]) == (2, False)
    resume(tmp_path, "num_threads=1", "plots=true")
    assert torch.get_num_threads() == 1
    assert saved(tmp_path)["changes"][-1]["before"] == {"num_threads": 2, "plots": False}
    assert (tmp_path / "decentralized.gif").exists()


@pytest.mark.parametrize("stops", [(), ("early_stopping.target=-100",)])
def test_a_finished_run_does_not_change(tmp_path, config, resume, capsys, stops):
    options = ("env=bridge_crossing", "normalize_observations=true", "logger=tensorboard")
    row = run(config(*TINY, *options, "plots=true", *stops), tmp_path)
    before = content(tmp_path)
    capsys.readouterr()
    assert resume(tmp_path, "algorithm.lr=1e-5") == row
    assert f"{tmp_path}: complete, nothing changes" in capsys.readouterr().out
    assert content(tmp_path) == before
    (tmp_path / "decentralized.gif").unlink()  # a run that was killed at its end
    resume(tmp_path)
    assert content(tmp_path).keys() == before.keys()


def test_training_beyond_the_budget(tmp_path, config, resume):
    options = (*TINY, "algorithm=agent_mixer", "algorithm.strength={start:1.0,end:0.0}")
    run(config(*options), tmp_path)
    with pytest.raises(ValueError, match=r"`env.total_frames` >= 80 as before, got 60"):
        resume(tmp_path, "env.total_frames=60")
    resume(tmp_path, "env.total_frames=160", "max_time=1e-6")
    assert not (tmp_path / "algorithm.pt").exists()
    resume(tmp_path)  # keeps the new budget
    assert read_metrics(tmp_path)["frames"] == list(range(20, 161, 20))
    assert saved(tmp_path)["env"]["total_frames"] == 160
    assert saved(tmp_path)["changes"] == [{"frames": 80, "before": {"env.total_frames": 80}}]


def test_schedules_are_fractions_of_the_new_budget(tmp_path, config):
    options = (*TINY, "algorithm=agent_mixer", "algorithm.strength={start:1.0,end:0.0}")
    run(config(*options), tmp_path)
    longer = config(f"resume={tmp_path}", "env.total_frames=160")
    prepared = prepare(longer, tmp_path, changed=["env.total_frames"])
    state = prepared.algorithm
    prepared.output.close()
    assert state.total_frames == 160
    state.frames = 80
    assert state.progress == 0.5


@pytest.mark.parametrize("complete", [True, False])
def test_start_from_another_run(tmp_path, config, complete):
    options = (*TINY, "env=bridge_crossing", "normalize_observations=true")
    source, target = tmp_path / "source", tmp_path / "target"
    run(config(*options, *(() if complete else ("max_time=1e-6",))), source)
    assert (source / "algorithm.pt").exists() == complete
    _, state = RunCheckpoints(source / "checkpoints").load_newest()
    state = state["ranks"][0]
    prepared = prepare(config(*options, f"init_from={source}", "seed=5"), target)
    expected, parameters = state["algorithm"]["parameters"], prepared.algorithm.state_dict()
    assert all(parameters[name].equal(value) for name, value in expected.items())
    statistics = observation_normalizer(prepared.env).statistics.to_dict()
    expected = state["collector"]["statistics"]
    for part in ("loc", "var", "count"):
        assert statistics[part]["state"].equal(expected[part]["state"])
    frozen = observation_normalizer(prepared.eval_env).statistics
    assert frozen["loc", "state"].data_ptr() == statistics["loc"]["state"].data_ptr()
    assert prepared.train()["frames"] == 80
    updated = observation_normalizer(prepared.env).statistics
    assert (updated["count", "state"] > expected["count"]["state"]).all()
    assert saved(target)["init_from"] == str(source)


def test_a_run_that_started_from_another_one_resumes_without_it(tmp_path, config, resume):
    source, target = tmp_path / "source", tmp_path / "target"
    run(config(*TINY), source)
    run(config(*TINY, f"init_from={source}", "max_time=1e-6"), target)
    source.rename(tmp_path / "elsewhere")
    assert resume(target)["frames"] == 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("algorithm=ippo", r"`algorithm.name` 'mappo', got 'ippo'"),
        ("algorithm.actor_hidden=[8]", r"\[2, 64\] there and \[2, 8\] here"),
        ("normalize_observations=true", "`normalize_observations` False, got True"),
    ],
)
def test_another_run_must_fit(tmp_path, config, change, message):
    run(config(*TINY), tmp_path / "source")
    with pytest.raises(ValueError, match=message):
        run(config(*TINY, f"init_from={tmp_path / 'source'}", change), tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.fixture
def blind(monkeypatch):
    """Matrix games without ``render``."""
    monkeypatch.delattr(MatrixGameEnv, "render")


def test_without_render_there_is_no_animation(tmp_path, config, blind, capsys):
    run(config(*TINY, "plots=true"), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{tmp_path}: no animation at the end: matrix/climbing has no `render`"]
    assert (tmp_path / "algorithm.pt").exists()
    assert not (tmp_path / "decentralized.gif").exists()


def test_without_render_there_are_no_videos(tmp_path, config, blind):
    with pytest.raises(ValueError, match="`video_interval` 20"):
        run(config(*TINY, "video_interval=20"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    env = make_env("matrix/climbing", num_envs=4)
    loop = LoopConfig(
        total_frames=40, frames_per_batch=20, eval_interval=20, eval_steps=1, video_interval=20
    )
    algorithm = prepare(config(*TINY), tmp_path / "other").algorithm
    with pytest.raises(ValueError, match="`video_interval` 20"):
        train(algorithm, env, env, loop, RunDirectory(tmp_path / "loop"))


def test_a_failed_animation_does_not_lose_the_run(tmp_path, config, monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise RuntimeError("no display")

    monkeypatch.setattr(MatrixGameEnv, "render", fails)
    assert run(config(*TINY, "plots=true"), tmp_path)["frames"] == 80
    assert f"{tmp_path}: no animation: no display" in capsys.readouterr().out


def test_pillow_is_checked_at_the_start(tmp_path, config, monkeypatch):
    monkeypatch.setattr("torchrl_agentmixer.training.evaluation.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        run(config(*TINY, "plots=true"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_values_of_a_configuration_are_checked_in_python_as_well():
    env = {"name": "matrix/climbing", "num_envs": 2, "total_frames": 8.0, "eval_envs": 1}
    env |= {"frames_per_batch": 8, "eval_interval": 8, "eval_steps": 1}
    values = {"env": env, "algorithm": {"name": "mappo", "num_minibatches": 2}}
    config = ExperimentConfig.from_dict(values)
    assert type(config.env.total_frames) is int
    with pytest.raises(TypeError, match="`env` to be a mapping, got 3"):
        ExperimentConfig.from_dict({**values, "env": 3})
    with pytest.raises(ValueError, match=r"`algorithm\.name`"):
        ExperimentConfig.from_dict({**values, "algorithm": {}})
