"""Environment steps per second of MA-MuJoCo, compared with gymnasium-robotics.

    OMP_NUM_THREADS=1 python benchmarks/mamujoco.py
    OMP_NUM_THREADS=1 python benchmarks/mamujoco.py --num-envs 32 --workers 2 --tasks ant_4x2

Both use random actions that are drawn beforehand, and automatic resets. Gymnasium-robotics steps
one environment at a time. This package steps a batch of environments in this process by
``step_and_maybe_reset``, and with ``--workers`` one batch per process by TorchRL's
``MultiSyncCollector``, with all processes and with one. Rounds alternate between the sides, and
each figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from common import alternate, print_machine, print_rows
from gymnasium_robotics import mamujoco_v1
from tensordict import TensorDictBase
from torchrl.collectors import MultiSyncCollector
from torchrl.envs import EnvBase

from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.envs.mamujoco_observations import TASKS, quiet_compiler


def reference(task: str):
    """Gymnasium-robotics's environment with the same observations."""
    robot, partition = TASKS[task]
    factorization = None
    if task in ("ant_8x1", "humanoid_17x1", "walker2d_6x1"):
        (joints,), edges, root = mamujoco_v1.get_parts_and_edges(robot, None)
        factorization = {"partition": [(j,) for j in joints], "edges": edges, "globals": root}
    with quiet_compiler():
        return mamujoco_v1.parallel_env(
            robot,
            partition,
            agent_obsk=0,
            agent_factorization=factorization,
            global_categories=(),
        )


def play_reference(env, steps: int) -> float:
    actions = [{a: env.action_space(a).sample() for a in env.possible_agents} for _ in range(steps)]
    env.reset()
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if any(terminated.values()) or any(truncated.values()):
            env.reset()
    return steps / (time.perf_counter() - start)


def play(env: EnvBase, steps: int) -> float:
    batches = max(1, steps // env.batch_size.numel())
    actions = [env.full_action_spec.rand() for _ in range(batches)]
    data = env.reset()
    start = time.perf_counter()
    for action in actions:
        _, data = env.step_and_maybe_reset(data.update(action))
    return batches * env.batch_size.numel() / (time.perf_counter() - start)


def collect(batches: Iterator[TensorDictBase]) -> float:
    """Steps per second of a collector's next batch."""
    start = time.perf_counter()
    return next(batches).numel() / (time.perf_counter() - start)


def measure(task: str, arguments) -> dict[str, str]:
    """Median rates and their ratios."""
    name = f"mamujoco/{task}"
    steps = arguments.steps
    sides: dict[str, Callable[[], float]] = {"raw": partial(play_reference, reference(task), steps)}
    for n in arguments.num_envs:
        sides[f"{n} envs"] = partial(play, make_env(name, num_envs=n, seed=0), steps)
    collectors = {}
    if arguments.workers > 1:
        num_envs = max(arguments.num_envs)
        frames = max(1, steps // num_envs) * num_envs
        make = partial(make_env, name, num_envs=num_envs)
        for count in (1, arguments.workers):
            collectors[count] = MultiSyncCollector(
                [make] * count, None, frames_per_batch=frames * count, total_frames=-1
            )
            sides[f"{count} workers"] = partial(collect, iter(collectors[count]))
    rates = alternate(sides, arguments.rounds)
    for collector in collectors.values():
        collector.shutdown()
    medians = {side: statistics.median(values) for side, values in rates.items()}
    row = {"task": task}
    for side, median in medians.items():
        row[side] = f"{median:,.0f}"
        if "envs" in side:
            row[f"{side} / raw"] = f"{median / medians['raw']:.2f}"
    if collectors:
        ratio = medians[f"{arguments.workers} workers"] / medians["1 workers"]
        row[f"{arguments.workers} / 1 workers"] = f"{ratio:.2f}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ["ant_4x2", "half_cheetah_6x1", "humanoid_17x1"]
    parser.add_argument("--tasks", nargs="+", default=default, choices=list(TASKS))
    parser.add_argument("--num-envs", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--steps", type=int, default=4000, help="of one environment or worker")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes, compared with one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_machine("environment steps per second")
    for i, task in enumerate(arguments.tasks):
        print_rows([measure(task, arguments)], header=i == 0)


if __name__ == "__main__":
    main()
