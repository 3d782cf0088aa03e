"""MAPPO and AgentMixer here, and a MAPPO script of TorchRL's components: frames per CPU second.

The script is ``examples/plain_mappo.py``: VMAS navigation, 60 environments, batches of 6,000
frames, 60 gradient steps of 1,000 frames each. The sides alternate. A side's rate is from two
trainings of different lengths, so that imports, environments, compilation and evaluation do not
count.

.. code-block:: console

    OMP_NUM_THREADS=1 python benchmarks/beside_script.py
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import alternate, print_machine, print_ratios

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.training import LoopConfig, RunDirectory, train

SCRIPT = Path(__file__).parent.parent / "examples/plain_mappo.py"
BATCH, LEAST = 6_000, 12_000
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


def ours(method: str, compiled: bool, frames: int) -> None:
    torch.manual_seed(0)
    make = partial(make_env, "vmas/navigation", max_steps=100, n_agents=3, collisions=False)
    env = make(num_envs=60, seed=0)
    algorithm = make_algorithm(method, env, frames, {**OPTIONS, "compile": compiled})
    loop = LoopConfig(
        total_frames=frames, frames_per_batch=BATCH, eval_interval=frames, eval_steps=100
    )
    with tempfile.TemporaryDirectory() as folder:
        train(algorithm, env, make(num_envs=100, seed=1), loop, RunDirectory(Path(folder)))


def rate(run: Callable[[int], object], frames: int) -> float:
    """Frames per CPU second of all after the first ``LEAST``."""
    seconds = []
    for total in (LEAST, frames):
        began = time.process_time()
        run(total)
        seconds.append(time.process_time() - began)
    return (frames - LEAST) / (seconds[1] - seconds[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.frames <= LEAST or arguments.frames % BATCH:
        expected = f"a multiple of {BATCH} above {LEAST}"
        parser.error(f"--frames: expected {expected}, got {arguments.frames}.")
    torch.set_num_threads(1)
    script = partial(runpy.run_path(str(SCRIPT))["main"], "continuous", seed=0)
    runs: dict[str, Callable[[int], object]] = {
        "MAPPO": partial(ours, "mappo", False),
        "AgentMixer": partial(ours, "agent_mixer_continuous", False),
        "MAPPO, compiled": partial(ours, "mappo", True),
        "AgentMixer, compiled": partial(ours, "agent_mixer_continuous", True),
        PEER: lambda frames: script(frames=frames),
    }
    print_machine("VMAS navigation, frames per CPU second")
    sides = {side: partial(rate, run, arguments.frames) for side, run in runs.items()}
    print_ratios(alternate(sides, arguments.rounds), PEER)


if __name__ == "__main__":
    main()
