"""Loggers get the rows of metrics.csv at their frames; a resumed run continues their runs."""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from test_checkpointing import Stopped, assert_equal_runs, run

from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import MetricLoggers

CONFIG = {"env": {"name": "grid/predator_prey"}, "seed": 0, "widths": [4, 4], "note": None}
HPARAMS = {"env.name": "grid/predator_prey", "seed": 0, "widths": "[4, 4]", "note": "null"}


def logged_run(path, backends, *, resume=False, stop_at=None, config=CONFIG):
    """A run with loggers, as in ``torchrl_agentmixer.experiment``."""
    loggers = MetricLoggers(backends, path)
    started = []

    def start(frames):
        started.append(frames)
        loggers.start(frames, config)

    def show(row):
        loggers.log(row)
        if row["frames"] == stop_at:
            raise Stopped

    try:
        run(path, "bridge", resume=resume, on_start=start, on_metrics=show)
    finally:
        loggers.close()
    return started


def stopped_and_resumed(path, backends):
    """Stopped at 200 after 160's checkpoint: 200 is logged twice."""
    with pytest.raises(Stopped):
        logged_run(path, backends, stop_at=200)
    assert logged_run(path, backends, resume=True, config={**CONFIG, "seed": 1}) == [160]


def expected(path):
    """Values of every metric except rates, by frames."""
    metrics = read_metrics(path)
    return {
        name: {f: v for f, v in zip(metrics["frames"], values, strict=True) if v is not None}
        for name, values in metrics.items()
        if name != "frames" and not name.startswith("fps")
    }


def by_name(rows):
    """Rows ``(step, metrics)`` as values by step, by name; a later value replaces an equal one."""
    found = defaultdict(dict)
    for step, metrics in rows:
        for name, value in metrics.items():
            if not name.startswith("fps"):
                assert found[name].setdefault(step, value) == value
    return found


def test_tensorboard_shows_the_run_as_one(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tmp_path / "cut"
    stopped_and_resumed(path, "tensorboard")
    events = EventAccumulator(str(path / "tensorboard")).Reload()
    scalars = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    assert [step for step, _ in scalars["fps"]] == [40, 80, 120, 160, 200, 240]  # each once
    for name, values in expected(path).items():
        assert scalars[name] == [(f, pytest.approx(v, rel=1e-6)) for f, v in values.items()], name
    (folder,) = (one for one in (path / "tensorboard").iterdir() if one.is_dir())  # at the start
    hparams = EventAccumulator(str(folder)).Reload().PluginTagToContent("hparams")
    assert any(b"grid/predator_prey" in content for content in hparams.values())
    run(tmp_path / "whole", "bridge")  # logging does not change training
    assert_equal_runs(tmp_path / "whole", path)


@pytest.fixture
def stand_in(monkeypatch):
    """Import a stand-in for a package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "logger_stand_ins"))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(f"torchrl.record.loggers.{name}._has_{name}", True)
        return importlib.import_module(name)

    yield load
    for name in ("wandb", "mlflow", "trackio"):
        sys.modules.pop(name, None)


def test_wandb(tmp_path, stand_in):
    wandb = stand_in("wandb")
    stopped_and_resumed(tmp_path, "wandb")
    ((run_id, logged),) = wandb.RUNS.items()
    assert len(run_id) == 32
    assert logged.finished
    assert logged.dir == str(tmp_path)
    rows = [(row["step"], {k: v for k, v in row.items() if k != "step"}) for row in logged.rows]
    assert [step for step, _ in rows] == [40, 80, 120, 160, 200, 200, 240]
    assert by_name(rows) == expected(tmp_path)
    assert logged.step_metrics["eval_return"] == "step"
    assert {**HPARAMS, "seed": 1}.items() <= logged.config.items()


def test_mlflow(tmp_path, stand_in):
    mlflow = stand_in("mlflow")
    stopped_and_resumed(tmp_path, ["mlflow"])
    assert not mlflow.ACTIVE  # another run can start in this process
    (logged,) = mlflow.RUNS.values()
    assert by_name(logged.metrics) == expected(tmp_path)
    assert logged.params == HPARAMS
    assert logged.tags["mlflow.runName"].endswith(tmp_path.name)
    assert logged.uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_trackio_and_tensorboard_at_once(tmp_path, stand_in):
    trackio = stand_in("trackio")
    stopped_and_resumed(tmp_path, ["trackio", "tensorboard"])
    (((project, name), logged),) = trackio.RUNS.items()
    assert project == "torchrl_agentmixer"
    assert name.endswith(tmp_path.name)
    assert by_name(logged.rows) == expected(tmp_path)
    assert logged.config == {**HPARAMS, "seed": 1}
    assert (tmp_path / "tensorboard").is_dir()


def test_an_unknown_or_missing_logger_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'tensorboard'"):
        MetricLoggers("tensorbord", tmp_path)
    monkeypatch.setattr("torchrl_agentmixer.training.logging.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        MetricLoggers("wandb", tmp_path)


def test_without_loggers_nothing_is_written(tmp_path):
    loggers = MetricLoggers(None, tmp_path)
    loggers.start(0, CONFIG)
    loggers.log({"frames": 1, "return": 1.0})
    loggers.close()
    assert not list(tmp_path.iterdir())
