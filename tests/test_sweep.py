"""Many runs by one command, and the report on what they leave."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_agentmixer.reporting import read_runs
from torchrl_agentmixer.reporting.__main__ import main

ROOT = Path(__file__).parent.parent
TINY = (
    "plots=false",
    "num_threads=1",
    "env.num_envs=20",
    "env.total_frames=80",
    "env.frames_per_batch=40",
    "env.eval_interval=40",
    "algorithm.epochs=1",
)


def sweep(runs, *overrides):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command = [sys.executable, "-W", "ignore", "examples/train.py", "--multirun"]
    command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"runs={runs}"]
    return subprocess.run(
        [*command, *TINY, *overrides], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_two_environments_by_two_methods_and_their_report(tmp_path):
    result = sweep(tmp_path / "runs", "env=climbing,penalty", "algorithm=mappo,mat", "seed=3")
    assert result.returncode == 0, result.stdout + result.stderr
    runs = read_runs(tmp_path / "runs")
    found = [(run.task, run.method, run.seed, run.config["env"]["name"]) for run in runs]
    assert found == [
        ("climbing", "mappo", 3, "matrix/climbing"),
        ("climbing", "mat", 3, "matrix/climbing"),
        ("penalty", "mappo", 3, "matrix/penalty"),
        ("penalty", "mat", 3, "matrix/penalty"),
    ]
    assert all((run.path / "algorithm.pt").exists() for run in runs)
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "report"), "--resamples", "5"])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| climbing | mat † | 1 |" in text
    assert "| penalty | mappo | 1 |" in text


def test_jobs_as_slurm_has_them(tmp_path):
    """By submitit, on this machine."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    runs = tmp_path / "runs"
    command = [sys.executable, "-W", "ignore", "examples/train.py", "--multirun", f"runs={runs}"]
    command += ["hydra/launcher=submitit_local", "env=climbing", "algorithm=mappo", "seed=3"]
    done = subprocess.run([*command, *TINY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = read_runs(runs)
    assert (run.task, run.method, run.seed) == ("climbing", "mappo", 3)
    assert (run.path / "algorithm.pt").exists()


def test_a_run_that_fails_leaves_the_others_and_no_folder_is_shared(tmp_path):
    """Two learning rates are sent to one folder; one run has it, complete, the other fails."""
    rates = "algorithm.lr=1e-3,2e-3"
    result = sweep(tmp_path / "runs", "env=climbing", "algorithm=mappo", "seed=0", rates)
    assert result.returncode != 0
    assert re.search("the results of another run|no other process uses", result.stderr)
    (run,) = read_runs(tmp_path / "runs")
    assert run.metrics["frames"] == [40.0, 80.0]
