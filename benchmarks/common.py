"""What several benchmarks share: printed tables, CSV files, and rounds of measurements."""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.training import LoopConfig, RunDirectory, train

WARM_UP = 3  # batches that no rate counts
LEAST_BATCHES = WARM_UP + 2  # one that counts, and the last

Side = TypeVar("Side", bound=Hashable)


def print_rows(rows: Sequence[Mapping[str, object]], *, header: bool = True) -> None:
    """Print rows of a Markdown table; their keys are the header."""
    if header:
        print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows; their keys are the header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def alternate(sides: Mapping[Side, Callable[[], float]], rounds: int) -> dict[Side, list[float]]:
    """Measure all sides in every round, so that other load of the machine affects all of them."""
    measured: dict[Side, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, measure in sides.items():
            measured[side].append(measure())
    return measured


def rate_of_batches(ends: Sequence[float], frames: int) -> float:
    """Frames per second after the first batches, from the times at which batches ended."""
    return frames * (len(ends) - WARM_UP) / (ends[-1] - ends[WARM_UP - 1])


def training_rate(
    method: str, options: Mapping[str, Any], make: Callable[..., EnvBase], frames: int, batch: int
) -> float:
    """Train once; frames per CPU second between the first batches and the last, which is evaluated.

    ``make(num_envs=..., seed=...)`` makes an environment.
    """
    torch.manual_seed(0)
    env = make(seed=0)
    algorithm = make_algorithm(method, env, frames, options)
    loop = LoopConfig(
        total_frames=frames, frames_per_batch=batch, eval_interval=frames, eval_steps=1
    )
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            algorithm,
            env,
            make(num_envs=1, seed=1),
            loop,
            RunDirectory(Path(folder)),
            on_metrics=lambda _: ends.append(time.process_time()),
        )
    return rate_of_batches(ends[:-1], batch)


def print_ratios(rates: Mapping[str, Sequence[float]], peer: str) -> None:
    """Print the rates of every round, and their median ratio to those of a side."""
    rows = []
    for side, each in rates.items():
        ratio = median(ours / theirs for ours, theirs in zip(each, rates[peer], strict=True))
        rounds = ", ".join(f"{value:,.0f}" for value in each)
        rows.append({"side": side, "each round": rounds, f"/ {peer}": f"{ratio:.2f}"})
    print_rows(rows)


def print_machine(what: str) -> None:
    """Print the number of cores, their load, and what is measured."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}; {what}:\n")


def compared_methods(continuous: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Names and options of MAPPO, AgentMixer, and AgentMixer with joint plans at first."""
    mixer = "agent_mixer_continuous" if continuous else "agent_mixer"
    plans = {"strength": {"start": 1.0, "end": 0.0, "until": 0.25}}
    return {"mappo": ("mappo", {}), "agent_mixer": (mixer, {}), "joint_plans": (mixer, plans)}
