"""Environment steps per second of SMAX through TorchRL, compared with JAX alone.

    OMP_NUM_THREADS=1 python benchmarks/smax.py
    OMP_NUM_THREADS=1 python benchmarks/smax.py --device cuda --num-envs 256 1024 4096

All sides use random actions. `step_env` is JaxMARL's step, compiled over the batch, without resets;
`step` is JaxMARL's step with resets; `env` is this package's environment by `step_and_maybe_reset`;
`collector` is TorchRL's `Collector`, with action masks, checks, resets and copies. Rounds alternate
between the sides, and each figure, ratios included, is the median of its rounds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from common import alternate, print_machine, print_rows
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.envs.smax_battles import make_battle


def raw(scenario: str, method: str, num_envs: int, device: str) -> Callable[[int], float]:
    """Step with a method of JaxMARL."""
    import jax

    with jax.default_device(jax.devices(device)[0]):
        battle = make_battle(scenario, {})
        battle._env.max_steps = 100
        names, n_actions = battle.agents, battle.num_ally_actions
        key = jax.random.key(0)
        actions = jax.random.randint(key, (20, len(names), num_envs), 0, n_actions)
        batches = [dict(zip(names, batch, strict=True)) for batch in actions]

        @jax.jit
        def step(key, state, actions):
            next_key, key = jax.random.split(key)
            keys = jax.random.split(key, num_envs)
            return next_key, jax.vmap(getattr(battle, method))(keys, state, actions)

        _, start = jax.jit(jax.vmap(battle.reset))(jax.random.split(key, num_envs))
        # Compile for both kinds of input: the types of the state change in the first step.
        _, (_, start, *_) = step(key, start, batches[0])
        jax.block_until_ready(step(key, start, batches[0]))

    def play(steps: int) -> float:
        state, carried = start, key
        began = time.perf_counter()
        for i in range(steps):
            carried, outcome = step(carried, state, batches[i % len(batches)])
            state = outcome[1]
        jax.block_until_ready(outcome)
        return steps * num_envs / (time.perf_counter() - began)

    return play


def play(env: EnvBase, steps: int) -> float:
    data = env.reset()
    began = time.perf_counter()
    for _ in range(steps):
        _, data = env.step_and_maybe_reset(env.rand_action(data))
    return steps * env.batch_size.numel() / (time.perf_counter() - began)


def collector(env: EnvBase, steps: int) -> Callable[[int], float]:
    """Collect batches of ``steps`` steps with one collector."""
    frames = steps * env.batch_size.numel()
    batches = iter(Collector(env, env.rand_action, frames_per_batch=frames, total_frames=-1))
    next(batches)

    def collect(steps: int) -> float:
        began = time.perf_counter()
        next(batches)
        return frames / (time.perf_counter() - began)

    return collect


def measure(scenario: str, num_envs: int, arguments) -> dict[str, str]:
    """Median rates and their ratios."""
    make = partial(make_env, f"smax/{scenario}", num_envs=num_envs, device=arguments.device)
    sides: dict[str, Callable[[int], float]] = {
        "step_env": raw(scenario, "step_env", num_envs, arguments.device),
        "step": raw(scenario, "step", num_envs, arguments.device),
        "env": partial(play, make(seed=0)),
        "collector": collector(make(seed=1), arguments.steps),
    }
    measures = {side: partial(rate, arguments.steps) for side, rate in sides.items()}
    rates = alternate(measures, arguments.rounds)
    medians = {side: statistics.median(values) for side, values in rates.items()}

    def ratio(side: str) -> str:  # within rounds, as the load of the machine varies
        pairs = zip(rates["collector"], rates[side], strict=True)
        return f"{statistics.median(ours / theirs for ours, theirs in pairs):.2f}"

    return {
        "scenario": scenario,
        "envs": str(num_envs),
        **{side: f"{median:,.0f}" for side, median in medians.items()},
        "collector / step_env": ratio("step_env"),
        "collector / step": ratio("step"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ["smacv2_5_units", "smacv2_10_units"]
    parser.add_argument("--scenarios", nargs="+", default=default)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=25, help="steps of the batch per round")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_machine("environment steps per second")
    for i, sizes in enumerate(itertools.product(arguments.scenarios, arguments.num_envs)):
        print_rows([measure(*sizes, arguments)], header=i == 0)


if __name__ == "__main__":
    main()
