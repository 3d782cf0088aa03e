"""Installed environments: sizes, and steps per second with random actions.

    python benchmarks/environments.py
    python benchmarks/environments.py --num-envs 512 --only vmas/ grid/predator_prey

One row per environment of `make_env`: agents per group, sizes of observation and state, actions
(their number, or dimensions if continuous), and environment steps per second of the whole batch,
through TorchRL, in one process, with automatic resets. `--only` takes names or their beginnings;
without it, most scenarios of VMAS and SMAX are left out.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import print_rows
from torchrl.envs import EnvBase

from torchrl_agentmixer.envs import available_envs, make_env
from torchrl_agentmixer.groups import AgentGroup, agent_groups, state_dim


def describe(group: AgentGroup) -> tuple[str, str, str]:
    kind = "" if group.discrete else " continuous"
    masked = ", masked" if group.masked else ""
    return str(group.n_agents), str(group.observation_dim), f"{group.action_dim}{kind}{masked}"


def steps_per_second(env: EnvBase, seconds: float) -> float:
    """Rate of at least two steps, and of all that start within ``seconds``."""
    data = env.rand_action(env.reset())
    _, data = env.step_and_maybe_reset(data)
    steps, start = 0, time.perf_counter()
    while steps < 2 or time.perf_counter() - start < seconds:
        _, data = env.step_and_maybe_reset(env.rand_action(data))
        steps += 1
    return steps * env.batch_size.numel() / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each environment")
    parser.add_argument("--only", nargs="+", default=[], help="names or their beginnings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    chosen = tuple(options.only)
    names = [
        name
        for name in available_envs()
        if (name.startswith(chosen) if chosen else name in OWN or not name.startswith(MANY))
    ]
    if not names:
        parser.error(f"--only {' '.join(chosen)}: expected some of {', '.join(available_envs())}")
    for index, name in enumerate(names):
        rewards_per_agent = name.startswith(("pettingzoo/", "vmas/"))
        kwargs = {"reward": "mean"} if rewards_per_agent else {}  # also of opponents
        env = make_env(name, num_envs=options.num_envs, device=options.device, seed=0, **kwargs)
        columns = [" + ".join(x) for x in zip(*map(describe, agent_groups(env)), strict=True)]
        row = dict(zip(("agents", "observation", "actions"), columns, strict=True))
        rate = f"{steps_per_second(env, options.seconds):,.0f}"
        row = {"environment": name, **row, "state": str(state_dim(env)), "steps/s": rate}
        print_rows([row], header=index == 0)
        env.close()


# Families with many scenarios, and those of their scenarios that are shown by default.
MANY = ("pettingzoo/", "smax/", "vmas/")
OWN = (
    "pettingzoo/simple_spread_v3",
    *("smax/smacv2_5_units", "smax/smacv2_10_units"),
    "vmas/predator_prey",
)

if __name__ == "__main__":
    main()
