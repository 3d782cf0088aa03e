"""One process at a time owns a run directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from torchrl_agentmixer.config import ExperimentConfig
from torchrl_agentmixer.experiment import run
from torchrl_agentmixer.training import RunDirectory

# Claims a folder, forks a worker that outlives it, and prints both process ids.
OWNER = """
import os, sys, time
from torchrl_agentmixer.training import RunDirectory
run = RunDirectory(sys.argv[1])
worker = os.fork()
if worker:
    print(os.getpid(), worker, flush=True)
time.sleep(100)
"""
ENV = {
    "name": "matrix/climbing",
    "num_envs": 4,
    "total_frames": 40,
    "frames_per_batch": 20,
    "eval_interval": 20,
    "eval_envs": 1,
    "eval_steps": 1,
}


def config(**fields):
    values = {"env": ENV, "algorithm": {"name": "mappo", "epochs": 1, "num_minibatches": 1}}
    return ExperimentConfig.from_dict({**values, "plots": False, **fields})


@pytest.fixture
def owner(tmp_path):
    """Another process that owns ``tmp_path``, and its worker."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    _, worker = map(int, process.stdout.readline().split())
    yield process
    process.kill()
    os.kill(worker, signal.SIGKILL)
    process.stdout.close()
    process.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork, no flock")
def test_the_second_process_is_told_who_owns_the_directory(tmp_path, owner):
    for fields in ({}, {"auto_resume": True}):
        with pytest.raises(BlockingIOError, match=rf"{tmp_path}.*process {owner.pid} on "):
            run(config(**fields), tmp_path)
    assert (tmp_path / "metrics.csv").exists()  # the fresh claim is not removed
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(BlockingIOError, match=f"process {owner.pid} "):
        RunDirectory(tmp_path, resume=True)
    (tmp_path / "checkpoints").rmdir()

    owner.kill()  # its worker is alive
    owner.wait()
    with pytest.raises(FileExistsError, match=r"its empty metrics\.csv"):
        run(config(), tmp_path)
    assert run(config(auto_resume=True), tmp_path)["frames"] == 40
    assert not (tmp_path / ".lock").exists()


def test_one_process_may_open_its_directory_again(tmp_path):
    first = RunDirectory(tmp_path)
    second = RunDirectory(tmp_path, resume=True)
    first.close()
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    second.close()
    assert not (tmp_path / ".lock").exists()


def test_the_lock_ends_with_the_last_reference(tmp_path):
    RunDirectory(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_a_file_is_no_run_directory(tmp_path):
    file = tmp_path / "mine"
    file.write_text("text")
    with pytest.raises(NotADirectoryError, match=str(file)):
        run(config(), file)
    assert file.read_text() == "text"
