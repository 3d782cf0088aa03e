"""Runs with many SIGKILLs, and long runs: ``make soak``.

``SOAK_MINUTES`` (10) is the total length of the runs of
:func:`test_a_long_run_keeps_memory_files_and_speed`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import time

import numpy as np
import pytest
from test_checkpointing import RUNS, assert_equal_runs, run

from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.training import RunCheckpoints

pytestmark = pytest.mark.soak

KILLS, BATCHES = 30, 60
LONG = ("grid", "grid, memory", "vmas", "mamujoco, happo", "maven")

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torchrl_agentmixer.algorithms", "torchrl_agentmixer.training"])


def in_process(*args, **kwargs):
    process = SERVER.Process(target=run, args=args, kwargs=kwargs)
    process.start()
    return process


def duration(*args, **kwargs):
    """Wall time of an uninterrupted run."""
    began = time.monotonic()
    process = in_process(*args, **kwargs)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def resumable(path):
    return len(RunCheckpoints(path / "checkpoints")) > 0


def count_rows(path):
    """Number of logged batches."""
    metrics = path / "metrics.csv"
    return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0


@pytest.mark.parametrize("kind", list(RUNS))
def test_killed_thirty_times(tmp_path, kind):
    """SIGKILL at random times; the results equal those of an uninterrupted run."""
    frames = {"total_frames": 40 * BATCHES}
    in_process(tmp_path / "server", kind).join()  # the server imports the package
    start = duration(tmp_path / "short", kind, total_frames=40)
    batch = (duration(tmp_path / "whole", kind, **frames) - start) / BATCHES
    moments, resumed = random.Random(0), set()
    cut = tmp_path / "cut"
    kills = 0
    while kills < KILLS:
        resume = resumable(cut)
        if resume:
            resumed.add(RunCheckpoints(cut / "checkpoints").load_newest()[0])
        else:
            (cut / "metrics.csv").unlink(missing_ok=True)  # it died before its first checkpoint
        rows = count_rows(cut)
        process = in_process(cut, kind, resume=resume, **frames)
        if moments.random() < 0.2:  # as it starts
            process.join(moments.uniform(start / 2, start))
        else:  # in one of the first batches
            rows += moments.randint(1, 2)
            while process.exitcode is None and count_rows(cut) < rows:
                process.join(batch / 20)
            process.join(moments.uniform(0, batch))
        if process.exitcode is None:
            process.kill()
            kills += 1
        else:
            assert process.exitcode == 0
            break
        process.join()
    assert kills == KILLS, f"over after {kills}"
    assert len(resumed) > 5
    run(cut, kind, resume=True, **frames)
    assert_equal_runs(tmp_path / "whole", cut)
    print(f"{kind}: {kills} times killed, resumed at {len(resumed)} different frames")


def resources():
    """Resident memory in MB, and open files, of this process."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))


def long_run(path, kind, seconds):
    """Train, and log the resources after each batch."""
    with open(path / "resources.csv", "w") as file:

        def note(row):
            print(time.monotonic(), *resources(), sep=",", file=file, flush=True)

        run(
            path / "run",
            kind,
            total_frames=10**9,
            max_time=seconds,
            checkpoint_interval=4_000,
            on_metrics=note,
        )


def slope(x, y):
    """Least squares, and the standard error of the slope."""
    x = x - x.mean()
    best = (x * (y - y.mean())).sum() / (x**2).sum()
    rest = y - y.mean() - best * x
    return best, math.sqrt((rest**2).sum() / (len(x) - 2) / (x**2).sum())


@pytest.mark.parametrize("kind", LONG)
def test_a_long_run_keeps_memory_files_and_speed(tmp_path, kind):
    """Memory, open files and speed after the first third, by fitted slopes."""
    seconds = 60 * float(os.environ.get("SOAK_MINUTES", "10")) / len(LONG)
    process = SERVER.Process(target=long_run, args=(tmp_path, kind, seconds))
    process.start()
    process.join()
    assert process.exitcode == 0
    when, memory, files = np.loadtxt(tmp_path / "resources.csv", delimiter=",").T
    rate = np.array(read_metrics(tmp_path / "run")["fps"])
    late = slice(len(when) // 3, None)
    batches = np.arange(len(when))
    growth, error = slope(batches[late], memory[late])
    faster, rate_error = slope(batches[late], rate[late] / np.median(rate[late]))
    print(
        f"{kind}: {len(when):,} batches in {when[-1] - when[0]:.0f} s; "
        f"memory {memory[late][0]:.1f} MB, {1e3 * growth:+.3f} +- {1e3 * error:.3f} MB in 1,000 "
        f"batches; {files[late].min():.0f} to {files[late].max():.0f} open files; "
        f"frames/s {1e5 * faster:+.2f} +- {1e5 * rate_error:.2f} % in 1,000 batches"
    )
    assert growth - 3 * error < 1e-3  # 1 MB in 1,000 batches
    assert files[late].max() <= files[late].min() + 1  # metrics being written
