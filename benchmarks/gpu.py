"""Throughput of training on one device, by number of environments: MAPPO and AgentMixer.

    python benchmarks/gpu.py --device cuda --csv gpu.csv           # the table in docs/results
    python benchmarks/gpu.py --device cpu --num-envs 64 --steps 8  # the same on a CPU, small

Every row is a training of a few batches by the package's own loop (``experiment.run``): frames per
second of the last batch, in all and of collection and update alone, and the peak memory. With
``--compile`` losses and policy are compiled, in the first batch (``algorithm.compile``). With
``--profile`` the ten operations that take most of the device's time in an update with joint plans
are printed, with the time of the whole update: the difference is time in which the device waits.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from common import compared_methods, print_rows, write_csv
from torch.profiler import ProfilerActivity, profile

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.config import ExperimentConfig
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.experiment import run

# Environments, their options, and the methods for their actions.
CONTINUOUS, DISCRETE = compared_methods(continuous=True), compared_methods(continuous=False)
ENVS = {
    "vmas/predator_prey": ({}, CONTINUOUS),
    "vmas/navigation": ({"collisions": False}, CONTINUOUS),
    "grid/predator_prey": ({"penalty": -1.0}, DISCRETE),
    "smax/smacv2_5_units": ({}, DISCRETE),
}


def measure(name: str, method: str, num_envs: int, arguments: argparse.Namespace) -> dict:
    """Train for a few batches; the rates of the last one."""
    frames = num_envs * arguments.steps
    algorithm, options = ENVS[name][1][method]
    values = {
        "env": {
            "name": name,
            "kwargs": ENVS[name][0],
            "num_envs": num_envs,
            "total_frames": frames * arguments.batches,
            "frames_per_batch": frames,
            "eval_interval": frames * arguments.batches,
            "eval_envs": 8,
            "eval_steps": 8,
        },
        "algorithm": {
            "name": algorithm,
            "epochs": 5,
            "num_minibatches": 8,
            "compile": arguments.compile,
            **options,
        },
        "device": arguments.device,
        "checkpoint_interval": None,
        "num_threads": 1,
        "plots": False,
    }
    on_gpu = arguments.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        row = run(ExperimentConfig.from_dict(values), folder)
    collect, update = (float(row[f"fps_{part}"] or 0) for part in ("collect", "update"))
    return {
        "env": name,
        "num_envs": num_envs,
        "method": method,
        "compiled": arguments.compile,
        "collect_fps": round(collect),
        "update_fps": round(update),
        "train_fps": round(1 / (1 / collect + 1 / update)),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else 0,
    }


def show_profile(name: str, num_envs: int, arguments: argparse.Namespace) -> None:
    """The operations that take most of the device's time in one update with joint plans."""
    kwargs, methods = ENVS[name]
    method, options = methods["joint_plans"]
    env = make_env(name, num_envs=num_envs, device=arguments.device, seed=0, **kwargs)
    algorithm = make_algorithm(
        method, env, 10**9, {"epochs": 1, "compile": arguments.compile, **options}
    )
    batch = env.rollout(arguments.steps, algorithm.policy, break_when_any_done=False).detach()
    algorithm.update(batch.copy())
    on_gpu = arguments.device.startswith("cuda")
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as profiler:
        algorithm.update(batch.copy())
    seconds = time.perf_counter() - start
    sort = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    print(
        f"{name}, {num_envs} environments: one epoch of joint_plans took {seconds:.3f} s (profiled)"
    )
    print(profiler.key_averages().table(sort_by=sort, row_limit=10, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--envs", nargs="+", default=list(ENVS)[:3], choices=list(ENVS))
    parser.add_argument("--methods", nargs="+", default=list(DISCRETE), choices=list(DISCRETE))
    parser.add_argument("--num-envs", type=int, nargs="+", default=[512, 4096, 32768])
    parser.add_argument("--steps", type=int, default=32, help="steps of a batch")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--csv", type=Path, help="a file for the rows")
    arguments = parser.parse_args()
    rows: list[dict] = []
    for num_envs in arguments.num_envs:
        for name in arguments.envs:
            for method in arguments.methods:
                new = measure(name, method, num_envs, arguments)
                print_rows([new], header=not rows)
                rows.append(new)
                if arguments.csv:
                    write_csv(rows, arguments.csv)
    if arguments.profile:
        show_profile(arguments.envs[0], arguments.num_envs[-1], arguments)


if __name__ == "__main__":
    main()
