"""Throughput and returns of one process, two ranks, two workers and two Ray actors.

    python benchmarks/scale_out.py --out build/scale_out          # the tables in docs/how_to

Every row is ``examples/train.py`` with the same total numbers of environments, frames and batches.
Seeds alternate between the engines, so that other load of the machine affects all of them. Rates of
collection and update are the median over a run's batches, without the first two, and the best of
the seeds. Before each seed, two loops in two processes are timed and compared with one loop: on a
shared machine this bounds the gain of any engine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from torchrl_agentmixer.reporting import read_metrics
from torchrl_agentmixer.reporting.tables import markdown

ROOT = Path(__file__).parents[1]
RANKS = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
ENGINES = {
    "one process": ([], []),
    "2 ranks": (RANKS, []),
    "2 workers": ([], ["collector.num_workers=2"]),
    "2 Ray workers": ([], ["collector.num_workers=2", "collector.backend=ray"]),
}
TASKS = {
    "grid/predator_prey": [
        "env=grid_predator_prey",
        "env.kwargs.penalty=0",
        "env.total_frames=100_000",
        "env.eval_interval=20_000",
    ],
    "mamujoco/half_cheetah_6x1": [
        "env=mamujoco",
        "env.total_frames=40_000",
        "env.eval_interval=40_000",
        "env.eval_steps=10",
    ],
    # A slower simulation, with batches that are large enough to be divided.
    "mamujoco/ant_4x2": [
        "env=mamujoco",
        "env.name=mamujoco/ant_4x2",
        "env.num_envs=64",
        "env.frames_per_batch=6_400",
        "env.total_frames=44_800",
        "env.eval_interval=44_800",
        "env.eval_steps=10",
    ],
}


def run(task: str, engine: str, seed: int, out: Path) -> Path:
    """The folder of a run; a complete run is not repeated."""
    folder = out / task.replace("/", "_") / engine.replace(" ", "_") / f"seed_{seed}"
    if not (folder / "algorithm.pt").exists():
        launcher, options = ENGINES[engine]
        fixed = ["algorithm=mappo", "num_threads=1", "plots=false", "checkpoint_interval=null"]
        command = [sys.executable, "-W", "ignore", *launcher, "examples/train.py", *TASKS[task]]
        command += [*fixed, *options, f"seed={seed}", f"hydra.run.dir={folder.resolve()}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def count(seconds: float) -> int:
    """Steps of a Python loop within ``seconds``."""
    end, done = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        done += sum(1 for _ in range(1000))
    return done


def two_at_once(seconds: float = 2.0) -> float:
    """Total steps of two processes at once, relative to one process alone."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(count, [0.01] * 2)
        alone = pool.apply(count, (seconds,))
        return sum(pool.map(count, [seconds] * 2, chunksize=1)) / alone


def rates(folder: Path) -> dict[str, float]:
    """Frames/s of collection, update and both."""
    metrics = read_metrics(folder)
    rows = list(zip(metrics["fps_collect"], metrics["fps_update"], strict=True))[2:]
    return {
        "collect": statistics.median(collect for collect, _ in rows),
        "update": statistics.median(update for _, update in rows),
        "both": statistics.median(1 / (1 / collect + 1 / update) for collect, update in rows),
    }


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n{markdown(header, rows)}", flush=True)


def speed(task: str, engines: list[str], folders: dict[str, list[Path]]) -> None:
    """A table of rates, and their ratios to one process."""
    best = {}
    for engine in engines:
        found = [rates(folder) for folder in folders[engine]]
        best[engine] = {part: max(each[part] for each in found) for part in found[0]}
    one = best["one process"]
    rows = [
        [
            engine,
            *(f"{best[engine][part]:,.0f} ({best[engine][part] / one[part]:.2f})" for part in one),
        ]
        for engine in engines
    ]
    show(f"{task}: frames/s (ratio to one process)", ["engine", *one], rows)


def returns(task: str, engines: list[str], folders: dict[str, list[Path]]) -> None:
    """A table of evaluation returns over training: mean, minimum and maximum over seeds."""
    rows, header = [], ["engine"]
    for engine in engines:
        tables = [read_metrics(folder) for folder in folders[engine]]
        at = [
            f
            for f, r in zip(tables[0]["frames"], tables[0]["eval_return"], strict=True)
            if r is not None
        ]
        header = ["engine", *(f"{frames:,.0f}" for frames in at)]
        columns = [[r for r in table["eval_return"] if r is not None] for table in tables]
        rows.append(
            [engine]
            + [
                f"{statistics.mean(c):.1f} ({min(c):.1f} to {max(c):.1f})"
                for c in zip(*columns, strict=True)
            ]
        )
    show(f"{task}: return of the executed policy by frames", header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/scale_out"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    arguments = parser.parse_args()
    engines = [e for e in ENGINES if "Ray" not in e or find_spec("ray") is not None]
    for task in arguments.tasks:
        folders: dict[str, list[Path]] = {engine: [] for engine in engines}
        bounds = []
        for seed in arguments.seeds:
            bounds.append(two_at_once())
            for engine in engines:
                folders[engine].append(run(task, engine, seed, arguments.out))
        speed(task, engines, folders)
        found = ", ".join(f"{bound:.2f}" for bound in bounds)
        print(f"\nTwo processes at once did {found} times the steps of one process.")
        if task.startswith("grid"):
            returns(task, engines, folders)


if __name__ == "__main__":
    main()
