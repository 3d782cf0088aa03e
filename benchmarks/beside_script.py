"""MAPPO and AgentMixer here, and a MAPPO script of TorchRL's components: frames per CPU second.

The script is ``examples/plain_mappo.py``: VMAS navigation, 60 environments, batches of 6,000
frames, 60 gradient steps of 1,000 frames each. The sides alternate. Times are of the batches after
the third; the script's are the difference of two trainings, of three batches and of all.

.. code-block:: console

    OMP_NUM_THREADS=1 python benchmarks/beside_script.py
"""

from __future__ import annotations

import argparse
import runpy
import time
from functools import partial
from pathlib import Path

import torch
from common import LEAST_BATCHES, WARM_UP, alternate, print_machine, print_ratios, training_rate

from torchrl_agentmixer.envs import make_env

SCRIPT = Path(__file__).parent.parent / "examples/plain_mappo.py"
BATCH = 6_000
OPTIONS = {
    "lr": 5e-4,
    "epochs": 10,
    "num_minibatches": 6,
    "entropy_coeff": 0.0,
    "gae_lambda": 0.9,
    "share_params": True,
    "actor_hidden": (64, 64),
    "critic_hidden": (64, 64),
    "distribution": "tanh_normal",
}
PEER = "plain_mappo.py"


def ours(method: str, compiled: bool, frames: int) -> float:
    make = partial(make_env, "vmas/navigation", max_steps=100, n_agents=3, collisions=False)
    options = {**OPTIONS, "compile": compiled}
    return training_rate(method, options, partial(make, num_envs=60), frames, BATCH)


def scripts(frames: int) -> float:
    run, least = runpy.run_path(str(SCRIPT))["main"], WARM_UP * BATCH
    seconds = []
    for total in (least, frames):
        began = time.process_time()
        run("continuous", frames=total, seed=0)
        seconds.append(time.process_time() - began)
    return (frames - least) / (seconds[1] - seconds[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    least = LEAST_BATCHES * BATCH
    if arguments.frames < least or arguments.frames % BATCH:
        expected = f"a multiple of {BATCH}, at least {least}"
        parser.error(f"--frames: expected {expected}, got {arguments.frames}.")
    torch.set_num_threads(1)
    print_machine("VMAS navigation, frames per CPU second")
    sides = {
        "MAPPO": partial(ours, "mappo", False, arguments.frames),
        "AgentMixer": partial(ours, "agent_mixer_continuous", False, arguments.frames),
        "MAPPO, compiled": partial(ours, "mappo", True, arguments.frames),
        "AgentMixer, compiled": partial(ours, "agent_mixer_continuous", True, arguments.frames),
        PEER: partial(scripts, arguments.frames),
    }
    print_ratios(alternate(sides, arguments.rounds), PEER)


if __name__ == "__main__":
    main()
