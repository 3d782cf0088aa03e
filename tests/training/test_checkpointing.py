"""Checkpoints and resume: resumed runs equal uninterrupted ones."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import LoopConfig, RunCheckpoints, RunDirectory, train

FRAMES = 240
NOISE = {"strength": {"start": 3.0, "end": 0.0, "until": 0.5}}
SAC = {"gradient_steps": 2, "batch_size": 8, "replay_size": 100}
RUNS = {
    "matrix": ("matrix/climbing", "agent_mixer", NOISE),
    "grid": ("grid/predator_prey", "agent_mixer", {}),
    "grid, memory": (
        "grid/predator_prey",
        "agent_mixer",
        {**NOISE, "memory_dim": 4, "sequence_length": 5},
    ),
    "recall": ("memory/recall", "mappo", {"memory_dim": 4, "sequence_length": 5}),
    "bridge": ("grid/bridge_crossing", "happo", {}),
    "vmas": ("vmas/predator_prey", "agent_mixer_continuous", NOISE),
    "two groups": ("vmas/simple_tag", "happo", {}),
    "mamujoco": ("mamujoco/half_cheetah_6x1", "agent_mixer_continuous", {"memory_dim": 4}),
    "mamujoco, happo": ("mamujoco/ant_4x2", "happo", {}),
    "mat": ("grid/predator_prey", "mat", {}),
    "maven": ("grid/predator_prey", "maven", {"num_minibatches": 2, "replay_size": 100}),
    "sac": ("vmas/predator_prey", "agent_mixer_sac", SAC),
    "hasac": ("vmas/predator_prey", "hasac", SAC),
    "ail": ("grid/bridge_crossing", "ail", {"memory_dim": 4, "sequence_length": 5}),
}


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes of SCRIPT: sums of several threads differ in the last digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(
    path, kind="grid", *, resume=False, total_frames=FRAMES, on_start=None, on_metrics=None, **loop
):
    """Train for six batches, with a checkpoint after each."""
    name, method, options = RUNS[kind]
    torch.manual_seed(0)
    kwargs = {"reward": "mean"} if kind == "two groups" else {}
    envs = [make_env(name, num_envs=n, seed=0, **kwargs) for n in (4, 3)]
    torch.manual_seed(0)
    options = options if options is SAC else {"epochs": 2, "num_minibatches": 2, **options}
    algorithm = make_algorithm(method, envs[0], total_frames, options)
    config = LoopConfig(
        total_frames=total_frames,
        frames_per_batch=40,
        eval_interval=80,
        eval_steps=5,
        **{"checkpoint_interval": 40, **loop},
    )
    messages: list[str] = []
    directory = RunDirectory(path, resume=resume)
    hooks = {"on_start": on_start, "on_metrics": on_metrics, "on_message": messages.append}
    train(algorithm, *envs, config, directory, **hooks)
    return algorithm, messages


class Stopped(Exception):
    """Ends a run in a test."""


def stop_at(frames):
    def stop(row):
        if row["frames"] == frames:
            raise Stopped

    return stop


def outcome(path):
    """Results that two equal runs share."""
    metrics = {k: v for k, v in read_metrics(path).items() if not k.startswith("fps")}
    parameters = torch.load(path / "algorithm.pt", weights_only=True)
    return metrics, (path / "evaluation.csv").read_text(), parameters


def assert_equal_runs(path, other):
    (metrics, episodes, parameters), (metrics_2, episodes_2, parameters_2) = map(
        outcome, (path, other)
    )
    assert metrics == metrics_2
    assert episodes == episodes_2
    assert parameters.keys() == parameters_2.keys()
    for name, value in parameters.items():
        assert torch.equal(value, parameters_2[name]), name


@pytest.mark.parametrize("kind", list(RUNS))
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, kind):
    run(tmp_path / "whole", kind, checkpoint_interval=None)
    for frames in (120, 200):  # before that batch's checkpoint: resumes from 80, then 160
        with pytest.raises(Stopped):
            run(tmp_path / "cut", kind, resume=frames > 120, on_metrics=stop_at(frames))
    _, messages = run(tmp_path / "cut", kind, resume=True)
    assert messages == [f"{tmp_path / 'cut'}: resumed from the checkpoint at frame 160."]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_checkpointing import run
from torchrl_agentmixer.training import Interrupted
path, resume, kind = sys.argv[1], sys.argv[2] == "resume", sys.argv[3]
try:
    run(path, kind, resume=resume, on_metrics=lambda row: time.sleep(0.05))
except Interrupted as interrupted:
    sys.exit(interrupted.exit_code)
"""


def start(path, *, resume, kind="grid"):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        SCRIPT.format(tests=str(Path(__file__).parent)),
    ]
    mode = "resume" if resume else "new"
    return subprocess.Popen(
        [*command, path, mode, kind], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_and_resumed(tmp_path):
    """Two SIGKILLs at arbitrary times after the first checkpoint."""
    run(tmp_path / "whole")
    cut = tmp_path / "cut"
    for resume in (False, True):
        process = start(cut, resume=resume)
        if resume:
            time.sleep(8)  # during the import, loading, or training
        else:
            wait_for(lambda: len(RunCheckpoints(cut / "checkpoints")) > 0, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(cut, resume=True)
    assert_equal_runs(tmp_path / "whole", cut)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sigterm_and_sigint_save_a_checkpoint(tmp_path, number, code):
    run(tmp_path / "whole")
    process = start(tmp_path / "cut", resume=False)
    checkpoints = RunCheckpoints(tmp_path / "cut" / "checkpoints")
    wait_for(lambda: len(checkpoints) > 0, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    frames, _ = checkpoints.load_newest()
    assert frames == read_metrics(tmp_path / "cut")["frames"][-1]
    if frames < FRAMES:
        run(tmp_path / "cut", resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_time_limit(tmp_path):
    run(tmp_path / "whole")
    _, messages = run(tmp_path / "cut", max_time=1e-6, checkpoint_interval=10_000)
    (message,) = messages
    assert "1e-06 s at frame 40" in message
    assert "checkpoint-000000000040.torchrl" in message
    assert not (tmp_path / "cut" / "algorithm.pt").exists()
    run(tmp_path / "cut", resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


# Damage.


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def plant_a_pickle(path):
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    (name,) = (name for name in entries if name.endswith("state.pt"))
    entries[name] = pickle.dumps(Trap())
    with zipfile.ZipFile(path, "w") as file:
        for entry, content in entries.items():
            file.writestr(entry, content)


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, plant_a_pickle])
def test_a_damaged_checkpoint_is_reported_and_skipped(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "cut", on_metrics=stop_at(200))
    _older, newer = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    damage(newer)
    _, messages = run(tmp_path / "cut", resume=True)
    assert messages[-1].endswith("resumed from the checkpoint at frame 120.")
    assert str(newer) in messages[0] or len(messages) == 1
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, plant_a_pickle])
def test_without_an_intact_checkpoint_resume_fails(tmp_path, damage):
    with pytest.raises(Stopped):
        run(tmp_path, on_metrics=stop_at(200))
    before = (tmp_path / "metrics.csv").read_text()
    for path in (tmp_path / "checkpoints").iterdir():
        damage(path)
    with pytest.raises(ValueError, match="expected an intact checkpoint") as error:
        run(tmp_path, resume=True)
    assert str(error.value).count(str(tmp_path / "checkpoints")) == 2
    assert (tmp_path / "metrics.csv").read_text() == before


def test_resume_without_a_checkpoint_fails(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        run(tmp_path, resume=True)


def test_a_failed_write_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save({"x": torch.zeros(3)}, frames=1)
    written = zipfile.ZipFile.write

    def disk_full(self, *args, **kwargs):
        written(self, *args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", disk_full)
    with pytest.raises(OSError, match=r"frame 2 .*No space left.*1 earlier checkpoints are intact"):
        checkpoints.save({"x": torch.ones(3)}, frames=2)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    frames, state = checkpoints.load_newest()
    assert frames == 1
    assert state["x"].equal(torch.zeros(3))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs permission")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_resume_after_a_full_disk(small_disk, tmp_path):
    filler = small_disk / "filler"

    def fill_up(row):
        if row["frames"] == 120:  # before the checkpoint of that batch
            free = shutil.disk_usage(small_disk).free
            filler.write_bytes(bytes(free - free % 4096))

    with pytest.raises(
        OSError, match=r"frame 120 .* with 0 bytes .*2 earlier checkpoints are intact"
    ):
        run(small_disk / "run", on_metrics=fill_up)
    checkpoints = small_disk / "run" / "checkpoints"
    assert len(list(checkpoints.iterdir())) == 2
    filler.unlink()
    _, messages = run(small_disk / "run", resume=True)
    assert messages == [f"{small_disk / 'run'}: resumed from the checkpoint at frame 80."]
    run(tmp_path / "whole")
    assert_equal_runs(tmp_path / "whole", small_disk / "run")


def test_the_newest_checkpoints_are_kept(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    for frames in (900, 1_000, 10_000, 20_000):
        checkpoints.save({"a": {"n": frames}}, frames=frames)
    assert len(checkpoints) == len(list(tmp_path.iterdir())) == 2
    assert checkpoints.load_newest() == (20_000, {"a": {"n": 20_000}})


def test_missing_rows_are_an_error(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, on_metrics=stop_at(200))
    (tmp_path / "metrics.csv").write_text("frames\n40\n")
    with pytest.raises(ValueError, match=r"metrics.csv: expected at least the \d+ bytes"):
        run(tmp_path, resume=True)


def test_the_state_of_another_algorithm_is_an_error(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, on_metrics=stop_at(200))
    with pytest.raises(ValueError, match="AgentMixer: expected the state of the same method"):
        run(tmp_path, "matrix", resume=True)
