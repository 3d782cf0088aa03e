"""Environment steps per second of MA-MuJoCo, compared with gymnasium-robotics.

    OMP_NUM_THREADS=1 python benchmarks/mamujoco.py
    OMP_NUM_THREADS=1 python benchmarks/mamujoco.py --num-envs 32 --threads 2 --workers 2

Both use random actions that are drawn beforehand, and automatic resets. Gymnasium-robotics steps
one environment at a time. This package steps a batch of environments by ``step_and_maybe_reset``.
These rates are steps per CPU second, which other processes disturb less. ``--threads`` compares
batches of the largest size whose simulators have one thread and several, and ``--workers`` one
process and several of TorchRL's ``MultiSyncCollector``, each with such a batch; in steps per
second of wall time. Rounds alternate between the sides, and each figure is the median of its
rounds. The ratio of two sides is the median of the rounds' ratios.
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
from torchrl_agentmixer.envs.mamujoco_observations import ONE_JOINT_EACH
from torchrl_agentmixer.envs.mamujoco_tasks import TASKS, quiet_compiler


def reference(task: str):
    """Gymnasium-robotics's environment with the same observations."""
    robot, partition = TASKS[task]
    factorization = None
    if task in ONE_JOINT_EACH:
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


Clock = Callable[[], float]


def play_reference(env, steps: int) -> float:
    """Steps per CPU second."""
    actions = [{a: env.action_space(a).sample() for a in env.possible_agents} for _ in range(steps)]
    env.reset()
    start = time.process_time()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if any(terminated.values()) or any(truncated.values()):
            env.reset()
    return steps / (time.process_time() - start)


def play(env: EnvBase, steps: int, clock: Clock) -> float:
    """Steps per second of a clock."""
    batches = max(1, steps // env.batch_size.numel())
    actions = [env.full_action_spec.rand() for _ in range(batches)]
    data = env.reset()
    start = clock()
    for action in actions:
        _, data = env.step_and_maybe_reset(data.update(action))
    return batches * env.batch_size.numel() / (clock() - start)


def collect(batches: Iterator[TensorDictBase]) -> float:
    """Steps per second of a collector's next batch."""
    start = time.perf_counter()
    return next(batches).numel() / (time.perf_counter() - start)


def measure(task: str, arguments) -> dict[str, str]:
    """Median rates and their ratios."""
    name = f"mamujoco/{task}"
    steps, num_envs = arguments.steps, max(arguments.num_envs)
    sides: dict[str, Callable[[], float]] = {"raw": partial(play_reference, reference(task), steps)}
    ratios: dict[str, tuple[str, str]] = {}  # side, what it is compared with, and the column
    for n in arguments.num_envs:
        env = make_env(name, num_envs=n, seed=0)
        sides[f"{n} envs"] = partial(play, env, steps, time.process_time)
        ratios[f"{n} envs"] = ("raw", f"{n} envs / raw")
    if arguments.threads > 1:
        for count in (1, arguments.threads):
            env = make_env(name, num_envs=num_envs, num_threads=count, seed=0)
            sides[f"{count} threads"] = partial(play, env, steps, time.perf_counter)
        ratios[f"{count} threads"] = ("1 threads", f"{count} / 1 threads")
    collectors = []
    if arguments.workers > 1:
        frames = max(1, steps // num_envs) * num_envs
        make = partial(make_env, name, num_envs=num_envs)
        for count in (1, arguments.workers):
            collector = MultiSyncCollector(
                [make] * count, None, frames_per_batch=frames * count, total_frames=-1
            )
            collectors.append(collector)
            sides[f"{count} workers"] = partial(collect, iter(collector))
        ratios[f"{count} workers"] = ("1 workers", f"{count} / 1 workers")
    rates = alternate(sides, arguments.rounds)
    for collector in collectors:
        collector.shutdown()
    row = {"task": task}
    for side, values in rates.items():
        row[side] = f"{statistics.median(values):,.0f}"
        if side in ratios:
            other, column = ratios[side]
            pairs = zip(values, rates[other], strict=True)
            row[column] = f"{statistics.median(a / b for a, b in pairs):.2f}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ["ant_4x2", "half_cheetah_6x1", "humanoid_17x1"]
    # Gymnasium-robotics' coupled half cheetah fails with MuJoCo 4.
    tasks = [task for task in TASKS if not task.startswith("coupled")]
    parser.add_argument("--tasks", nargs="+", default=default, choices=tasks)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--steps", type=int, default=4000, help="of one environment or worker")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of a batch, compared with one")
    parser.add_argument("--workers", type=int, default=1, help="processes, compared with one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_machine("environment steps per second, of CPU time up to the threads and workers")
    for i, task in enumerate(arguments.tasks):
        print_rows([measure(task, arguments)], header=i == 0)


if __name__ == "__main__":
    main()
