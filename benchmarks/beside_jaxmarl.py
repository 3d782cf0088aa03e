"""MAPPO here and JaxMARL's MAPPO on SMAX: frames per CPU second.

Both have the same battles, numbers of environments, steps, epochs and minibatches, GRUs of the same
width, and actors that share their parameters. JaxMARL compiles battles, collection and updates into
one program; its critic has a GRU and one value per agent. Here the battles alone are compiled (the
recurrence would be unrolled), and the critic is an MLP with one value per team. The sides
alternate; times are CPU seconds of all batches after the third.

JaxMARL's scripts are in its repository, not in its package, and import distrax, which does not run
with JAX 0.10. This file has the one distribution that they use.

.. code-block:: console

    git clone https://github.com/FLAIROx/JaxMARL
    OMP_NUM_THREADS=1 python benchmarks/beside_jaxmarl.py --jaxmarl JaxMARL
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import torch
import yaml
from common import (
    LEAST_BATCHES,
    alternate,
    print_machine,
    print_ratios,
    rate_of_batches,
    training_rate,
)

from torchrl_agentmixer.envs import make_env

SCRIPTS = Path("baselines/MAPPO")
CONFIG = Path("config/mappo_homogenous_rnn_smax.yaml")
LR, EPOCHS, MINIBATCHES, WIDTH, GRAD_NORM = 5e-4, 4, 4, 128, 0.25
PEER = "JaxMARL's MAPPO"


class Categorical:
    """What JaxMARL's script uses of ``distrax.Categorical``."""

    def __init__(self, logits: jax.Array) -> None:
        self.logits = jax.nn.log_softmax(logits)

    def sample(self, seed: jax.Array) -> jax.Array:
        return jax.random.categorical(seed, self.logits)

    def log_prob(self, action: jax.Array) -> jax.Array:
        return jnp.take_along_axis(self.logits, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        return -(jnp.exp(self.logits) * self.logits).sum(-1)


@cache
def jaxmarls_script(checkout: Path) -> ModuleType:
    """Import JaxMARL's training script with this file's distribution and an empty ``wandb``."""
    distrax = ModuleType("distrax")
    distrax.Categorical = Categorical  # type: ignore[attr-defined]
    sys.modules |= {"distrax": distrax, "wandb": ModuleType("wandb")}
    sys.path.insert(0, str(checkout / SCRIPTS))
    import mappo_rnn_smax

    return mappo_rnn_smax


def theirs(sizes: argparse.Namespace) -> float:
    ends: list[float] = []
    script = jaxmarls_script(sizes.jaxmarl)
    script.wandb.log = lambda _: ends.append(time.process_time())
    batch = sizes.num_envs * sizes.steps
    config = yaml.safe_load((sizes.jaxmarl / SCRIPTS / CONFIG).read_text())
    config |= {"MAP_NAME": sizes.scenario, "TOTAL_TIMESTEPS": sizes.batches * batch}
    config |= {"NUM_ENVS": sizes.num_envs, "NUM_STEPS": sizes.steps, "ENV_KWARGS": {}}
    config |= {"LR": LR, "ANNEAL_LR": False, "UPDATE_EPOCHS": EPOCHS}
    config |= {"NUM_MINIBATCHES": MINIBATCHES, "MAX_GRAD_NORM": GRAD_NORM}
    config |= {"FC_DIM_SIZE": WIDTH, "GRU_HIDDEN_DIM": WIDTH}
    jax.block_until_ready(jax.jit(script.make_train(config))(jax.random.PRNGKey(0)))
    return rate_of_batches(ends, batch)


def ours(method: str, sizes: argparse.Namespace) -> float:
    batch = sizes.num_envs * sizes.steps
    options = {
        "lr": LR,
        "epochs": EPOCHS,
        "num_minibatches": MINIBATCHES,
        "entropy_coeff": 0.0,
        "max_grad_norm": GRAD_NORM,
        "actor_hidden": (WIDTH,),
        "critic_hidden": (WIDTH, WIDTH),
        "memory_dim": WIDTH,
        "sequence_length": sizes.steps,
        "share_params": True,
    }
    make = partial(make_env, f"smax/{sizes.scenario}", num_envs=sizes.num_envs)
    return training_rate(method, options, make, sizes.batches * batch, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jaxmarl", type=Path, required=True, help="checkout of its repository")
    parser.add_argument("--scenario", default="smacv2_5_units")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    sizes = parser.parse_args()
    if not (sizes.jaxmarl / SCRIPTS).is_dir():
        parser.error(f"--jaxmarl: expected a checkout with {SCRIPTS}, got {sizes.jaxmarl}.")
    if sizes.batches < LEAST_BATCHES:
        parser.error(f"--batches: expected at least {LEAST_BATCHES}, got {sizes.batches}.")
    torch.set_num_threads(1)
    print_machine(f"{sizes.scenario}, frames per CPU second")
    sides = {
        "MAPPO": partial(ours, "mappo", sizes),
        "AgentMixer": partial(ours, "agent_mixer", sizes),
        PEER: partial(theirs, sizes),
    }
    print_ratios(alternate(sides, sizes.rounds), PEER)


if __name__ == "__main__":
    main()
