"""Throughput of environment, collection and update: MAPPO, AgentMixer, and joint plans.

    python benchmarks/throughput.py                                # at the start of training
    python benchmarks/throughput.py --progress 0.6                 # where the Modifier does not run
    python benchmarks/throughput.py --num-envs 512 --profile       # of the update with joint plans
    python benchmarks/throughput.py --device cuda --num-envs 512 4096
    python benchmarks/throughput.py --num-envs 32 --n-agents 3 10 30 100 --plot agents.png

Every row is measured in one process, in rounds that alternate between the sides; each figure is the
best of its rounds. Ratios are relative to the environment with random actions (collection) and to
MAPPO (update). Peak memory is the increase during the work, on the measured device.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from common import alternate, compared_methods, print_rows, write_csv
from torch.profiler import ProfilerActivity, profile
from torchrl.collectors import Collector

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.groups import agent_groups
from torchrl_agentmixer.training import keep_freed_memory

TOTAL_FRAMES = 10**9  # so many that a measurement is no progress


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def rate(work: Callable[[], int], device: str) -> float:
    """Frames per second of ``work``, which returns its number of frames."""
    synchronize(device)
    start = time.perf_counter()
    frames = work()
    synchronize(device)
    return frames / (time.perf_counter() - start)


def peak_memory(work: Callable[[], int], device: str) -> float:
    """Peak memory of ``work`` in MiB, without what is allocated before."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")
    reset.write_text("5")
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 2**10


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def environment_work(env, steps: int) -> Callable[[], int]:
    def work() -> int:
        tensordict = env.reset()
        for _ in range(steps):
            _, tensordict = env.step_and_maybe_reset(env.rand_action(tensordict))
        return steps * env.batch_size.numel()

    return work


def collection_work(env, policy, steps: int, compile_policy: bool) -> Callable[[], int]:
    frames = steps * env.batch_size.numel()
    collector = Collector(
        env,
        policy,
        frames_per_batch=frames,
        total_frames=-1,
        compile_policy={"fullgraph": True} if compile_policy else False,
    )
    batches = iter(collector)
    next(batches)  # warm up, and compile
    return lambda: next(batches).numel()


def update_work(algorithm, env, steps: int) -> Callable[[], int]:
    batch = env.rollout(steps, algorithm.policy, break_when_any_done=False).detach()
    return lambda: (algorithm.update(batch.copy()), batch.numel())[1]


def measure(arguments, num_envs: int, n_agents: int) -> list[dict]:
    """One row per method."""
    device = arguments.device
    agents = {"n_predators": n_agents} if arguments.env == "vmas/predator_prey" else {}
    works: dict[tuple[str, str], Callable[[], int]] = {}

    def new_env():
        return make_env(arguments.env, num_envs=num_envs, device=device, seed=0, **agents)

    continuous = not agent_groups(new_env())[0].discrete
    works["environment", ""] = environment_work(new_env(), arguments.steps)
    methods = compared_methods(continuous)
    for method, (name, own) in methods.items():
        options = {"epochs": arguments.epochs, "compile": arguments.compile, **own}
        if method == "joint_plans" and arguments.channels:
            options["channels"] = arguments.channels
        algorithm = make_algorithm(name, new_env(), TOTAL_FRAMES, options)
        algorithm.frames = int(arguments.progress * TOTAL_FRAMES)
        algorithm.on_progress(algorithm.progress)
        works["collection", method] = collection_work(
            new_env(), algorithm.policy, arguments.steps, arguments.compile
        )
        works["update", method] = update_work(algorithm, new_env(), arguments.steps)
        if arguments.profile and method == "joint_plans":
            show_profile(works["update", method])
    memory = {key: peak_memory(work, device) for key, work in works.items()}
    rates = alternate({k: partial(rate, w, device) for k, w in works.items()}, arguments.rounds)
    best = {key: max(values) for key, values in rates.items()}
    return [
        {
            "env": arguments.env,
            "num_envs": num_envs,
            "n_agents": n_agents,
            "method": method,
            "progress": arguments.progress,
            "environment_fps": round(best["environment", ""]),
            "collection_fps": round(best["collection", method]),
            "collection_ratio": round(best["collection", method] / best["environment", ""], 3),
            "update_fps": round(best["update", method]),
            "update_cost_ratio": round(best["update", "mappo"] / best["update", method], 2),
            "collection_mib": round(memory["collection", method]),
            "update_mib": round(memory["update", method]),
        }
        for method in methods
    ]


def plot_agents(rows: list[dict], path: Path) -> None:
    """Plot microseconds per environment step against the number of agents, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure((5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    methods = dict.fromkeys(row["method"] for row in rows)
    curves = [(f"update, {method}", method, "update_fps") for method in methods]
    for label, method, column in [*curves, ("environment", "mappo", "environment_fps")]:
        own = [row for row in rows if row["method"] == method]
        agents = [row["n_agents"] for row in own]
        axes.loglog(agents, [1e6 / row[column] for row in own], marker="o", label=label)
    axes.set_xticks(agents, labels=agents)
    axes.minorticks_off()
    axes.set_xlabel("agents")
    axes.set_ylabel("microseconds per environment step")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def show_profile(work: Callable[[], int]) -> None:
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="vmas/predator_prey")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[32, 512, 2048])
    parser.add_argument("--n-agents", type=int, nargs="+", default=[3])
    parser.add_argument("--channels", type=int, help="width of the Policy Modifier")
    parser.add_argument("--progress", type=float, default=0.0, help="fraction of training")
    parser.add_argument("--steps", type=int, default=50, help="steps of one measurement")
    parser.add_argument("--epochs", type=int, default=1, help="of an update")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile policy and losses")
    parser.add_argument("--profile", action="store_true", help="profile the update with plans")
    parser.add_argument("--csv", type=Path, help="a file for the rows")
    parser.add_argument("--plot", type=Path, help="a PNG file of cost against --n-agents")
    arguments = parser.parse_args()
    if arguments.plot and len(arguments.num_envs) > 1:
        parser.error(f"--plot: expected one number of --num-envs, got {arguments.num_envs}.")
    if arguments.plot and find_spec("matplotlib") is None:
        parser.error('--plot needs matplotlib: pip install "torchrl_agentmixer[plots]"')
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()

    rows = []
    for num_envs, n_agents in itertools.product(arguments.num_envs, arguments.n_agents):
        new = measure(arguments, num_envs, n_agents)
        print_rows(new, header=not rows)
        rows += new
    if arguments.csv:
        write_csv(rows, arguments.csv)
    if arguments.plot:
        plot_agents(rows, arguments.plot)


if __name__ == "__main__":
    main()
