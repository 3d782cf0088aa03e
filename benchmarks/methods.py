"""Frames per CPU second of training with every method, on four families of environments.

    OMP_NUM_THREADS=1 python benchmarks/methods.py --batches 5 --rounds 1  # as in docs/results
    OMP_NUM_THREADS=1 python benchmarks/methods.py --envs grid_predator_prey --methods mappo magpo

Environments, batches and options are those of ``examples/train.py``, but SAC has batches of ten
steps, which on MA-MuJoCo are the 160 frames of ``studies/sac.yaml``. Collection and update count,
evaluation does not. Rounds alternate between the methods; each figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median

import torch
from common import LEAST_BATCHES, alternate, print_machine, print_rows, training_rate
from study import TRAIN, load

from torchrl_agentmixer.algorithms import available_algorithms
from torchrl_agentmixer.envs import make_env

ENVS = ("grid_predator_prey", "vmas_predator_prey", "mamujoco", "smax")
SAC_STEPS = 10


def rate(env: str, method: str, batches: int) -> float:
    """Frames per CPU second of one training."""
    config = load(TRAIN).compose([f"env={env}", f"algorithm={method}"]).to_dict()
    options, settings = config["algorithm"], config["env"]
    name = options.pop("name")
    num_envs, batch = settings["num_envs"], settings["frames_per_batch"]
    if "alpha_init" in options:
        batch = SAC_STEPS * num_envs
    make = partial(make_env, settings["name"], num_envs=num_envs, **settings["kwargs"])
    return training_rate(name, options, make, batches * batch, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--envs", nargs="+", default=list(ENVS), help="files of examples/conf/env")
    parser.add_argument("--methods", nargs="+", default=available_algorithms())
    parser.add_argument("--batches", type=int, default=LEAST_BATCHES + 3, help="of one training")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.batches < LEAST_BATCHES:
        parser.error(f"--batches: expected at least {LEAST_BATCHES}, got {arguments.batches}.")
    torch.set_num_threads(1)
    table: dict[str, dict[str, str]] = {name: {"method": name} for name in arguments.methods}
    for env in arguments.envs:
        settings = load(TRAIN).compose([f"env={env}"]).env
        supported = available_algorithms(make_env(settings.name, num_envs=2, **settings.kwargs))
        sides = {
            name: partial(rate, env, name, arguments.batches)
            for name in arguments.methods
            if name in supported
        }
        measured = alternate(sides, arguments.rounds)
        for name, row in table.items():
            row[env] = f"{median(measured[name]):,.0f}" if name in measured else ""
    print_machine("frames per CPU second")
    print_rows(list(table.values()))


if __name__ == "__main__":
    main()
