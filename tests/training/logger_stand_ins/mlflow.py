"""What TorchRL's MLFlowLogger calls of MLflow: one active run in a process, in an experiment."""

from __future__ import annotations

import os
from types import SimpleNamespace

EXPERIMENTS: dict[str, str] = {}
RUNS: dict[str, SimpleNamespace] = {}
ACTIVE: list[str] = []
URI: list[str] = []


def set_tracking_uri(uri):
    URI[:] = [uri]


def get_experiment_by_name(name):
    return SimpleNamespace(experiment_id=EXPERIMENTS[name]) if name in EXPERIMENTS else None


def create_experiment(name, artifact_location=None, tags=None):
    EXPERIMENTS[name] = str(len(EXPERIMENTS) + 1)
    return EXPERIMENTS[name]


def set_experiment(experiment_id):
    assert experiment_id in EXPERIMENTS.values()


def start_run(experiment_id):
    if ACTIVE:
        raise RuntimeError(f"Run with UUID {ACTIVE[0]} is already active.")
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id is None:
        run_id = f"run{len(RUNS)}"
        RUNS[run_id] = SimpleNamespace(params={}, metrics=[], tags={}, uri=URI[0])
    ACTIVE.append(run_id)
    assert run_id in RUNS
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id))


def end_run():
    ACTIVE.clear()


def set_tag(key, value):
    RUNS[ACTIVE[0]].tags[key] = value


def log_params(params):
    before = RUNS[ACTIVE[0]].params
    for key, value in params.items():
        if before.setdefault(key, value) != value:
            raise ValueError(f"Changing param values is not allowed: {key}")


def log_metrics(metrics, step=None):
    RUNS[ACTIVE[0]].metrics.append((step, dict(metrics)))
