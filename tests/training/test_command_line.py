"""Mistakes on the command line: one line that names the field, exit code 2, no run directory."""

from __future__ import annotations

import logging
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = (
    "env=climbing",
    "algorithm=mappo",
    "env.num_envs=4",
    "env.total_frames=40",
    "env.frames_per_batch=20",
    "env.eval_interval=20",
    "plots=false",
)
MISTAKES = {
    # numbers out of range
    "algorithm.lr=-1e-3": r"`lr` > 0, got -0\.001",
    "algorithm.lr=0": "`lr` > 0, got 0",
    "algorithm.lr=nan": "`lr` > 0, got nan",
    "algorithm.gamma=1.5": r"`gamma` in \[0, 1\], got 1\.5",
    "algorithm.gae_lambda=-0.1": "`gae_lambda`.*-0.1",
    "algorithm.clip_epsilon=-0.2": "`clip_epsilon` >= 0, got -0.2",
    "algorithm.clip_epsilon=[0.2,-1]": "`clip_epsilon` >= 0.*-1",
    "algorithm.clip_epsilon=[0.2,{start:-1,end:0}]": "`clip_epsilon` >= 0.*-1",
    "algorithm.epochs=0": "`epochs` >= 1, got 0",
    "algorithm.num_minibatches=21": "`num_minibatches` <= 20.*got 21",
    "algorithm.actor_hidden=[64,0]": "`actor_hidden` >= 1",
    "algorithm.memory_dim=8": "`sequence_length`.*5 steps.*got 10",
    "env.eval_interval=50": "`eval_interval` <= `total_frames` 40, got 50",
    "env.frames_per_batch=21": "`frames_per_batch`.*`num_envs` 4, got 21",
    "env.num_envs=0": "`num_envs` >= 1, got 0",
    "seed=-1": r"`seed` in \[0, 9223372036854775808\), got -1",
    "seed=9223372036854775808": "`seed`.*got 9223372036854775808",
    "num_threads=0": "`num_threads` >= 1, got 0",
    "collector.num_workers=-1": "`num_workers` >= 0, got -1",
    "collector.num_workers=3": "`env.num_envs`.*3 workers, got 4",
    "early_stopping.patience=0": "`patience` >= 1, got 0",
    "max_time=0": "`max_time` > 0, got 0",
    "video_interval=0": "`video_interval` >= 1, got 0",
    # other types
    "seed=abc": "`seed` to be int, got 'abc'",
    "seed=1.5": r"`seed` to be int, got 1\.5",
    "algorithm.lr=null": "`lr` to be float, got None",
    "algorithm.lr=fast": "`lr` to be float, got 'fast'",
    "algorithm.actor_hidden=64": "`actor_hidden` to be a list of int, got 64",
    "algorithm.clip_epsilon=[0.2]": "`clip_epsilon` to be .*a list of 2.*got .0.2.",
    "algorithm.distribution=gauss": "`distribution` to be 'normal' or 'tanh_normal', got 'gauss'",
    "env.total_frames=true": "`total_frames` to be int, got True",
    "env.kwargs=3": "`kwargs` to be a mapping, got 3",
    "plots=2": "`plots` to be bool, got 2",
    "collector.backend=threads": "`backend`.*'ray', got 'threads'",
    # unknown names
    "device=gpu": "`device`.*gpu",
    "device=cuda:99": "`device`.*cuda:99",
    "logger=tensorbord": "did you mean 'tensorboard'",
    "algorithm.learning_rate=1": "algorithm.learning_rate",
    "algorithm.name=mapo": "did you mean 'mappo'",
    "env=unknown_env": "unknown_env",
    "env.name=matrix/climbin": "did you mean 'matrix/climbing'",
    "+env.kwargs.size=3": "size",
    "algorithm=[": r"algorithm=\[",
    # other runs
    "resume={folder}/none": "none: expected a run directory",
    "init_from={folder}/none": "none: expected a run directory",
    "hydra.run.dir={folder}/file": "hydra.run.dir.*found a file",
    "hydra.run.dir={folder}/file/run": "hydra.run.dir.*found a file",
    "hydra.run.dir={folder}/old": "old: expected an empty run directory",
}


@pytest.fixture
def train(capsys, run_script, monkeypatch):
    """``python examples/train.py``, in this process; returns exit code, output and errors."""
    monkeypatch.chdir(ROOT)

    def train(*overrides):
        monkeypatch.setattr(sys, "argv", ["examples/train.py", *overrides])
        monkeypatch.setattr(logging, "_handlerList", [])  # Hydra closes all that it finds
        code = 0
        try:
            runpy.run_path("examples/train.py", run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return train


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, tmp_path, train):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.csv").write_text("frames\n20\n")
    runs = tmp_path / "runs"
    before = sorted(tmp_path.rglob("*"))
    code, _, errors = train(*TINY, f"runs={runs}", mistake.replace("{folder}", str(tmp_path)))
    assert code == 2
    assert len(errors.splitlines()) == 1, errors
    assert re.search(MISTAKES[mistake], errors), errors
    assert sorted(path for path in tmp_path.rglob("*") if path != runs) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "examples/train.py", *TINY, f"runs={tmp_path}", "seed=abc"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "ExperimentConfig: expected `seed` to be int, got 'abc'.\n"


def test_a_sweep_does_its_other_runs(tmp_path, train):
    code, _, errors = train("--multirun", *TINY, f"runs={tmp_path}", "seed=-1,1")
    assert code == 2
    assert "`seed`" in errors.splitlines()[-1]
    folders = [path.parent.name for path in tmp_path.rglob("algorithm.pt")]
    assert folders == ["seed_1"]
    assert not list(tmp_path.rglob("seed_-1"))


def test_errors_of_training_keep_their_traceback(tmp_path, train, monkeypatch):
    def fails(self, batch):
        raise ValueError("in training")

    monkeypatch.setattr("torchrl_agentmixer.algorithms.MAPPO.update", fails)
    with pytest.raises(ValueError, match="in training"):
        train(*TINY, f"runs={tmp_path}")


def test_whole_floats_are_integers(tmp_path, train):
    options = ("env.total_frames=4e1", "env.num_envs=4.0", "seed=1e0", f"runs={tmp_path}")
    code, printed, errors = train(*TINY, *options)
    assert code == 0, errors
    assert "| matrix/climbing | mappo | 1 | 40 |" in printed
