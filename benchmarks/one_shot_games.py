"""Climbing and penalty games, AgentMixer beside MAPPO: what the decentralized modes earn.

    python benchmarks/one_shot_games.py                       # the tables in docs/results
    python benchmarks/one_shot_games.py --seeds 2 --frames 20000

Every run goes through the training loop, as in ``examples/train.py``. "AgentMixer, paper" has
Eq. 12 as published with the authors' gain of the Modifier's last layer (0.01) and learning rate
(5e-5); "AgentMixer" anneals the noise's strength to zero and trains the Modifier 200 times faster,
and "AgentMixer, lr 5e-3" 100 times.
Since a Modifier that fast is a large step, MAPPO is run with a learning rate of 1e-2 as well.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import get_context

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.training import LoopConfig, RunDirectory, train

GAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "climbing": ("matrix/climbing", {}),
    "penalty -25": ("matrix/penalty", {"k": -25.0}),
}
ANNEALED = {"start": 1.0, "end": 0.0, "until": 0.667}
PPO = {"epochs": 15, "num_minibatches": 1}
MODIFIER = {**PPO, "channels": 32, "head_gain": 0.01}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "MAPPO": ("mappo", PPO),
    "MAPPO, lr 1e-2": ("mappo", {**PPO, "lr": 1e-2}),
    "AgentMixer, paper": ("agent_mixer", {**MODIFIER, "lr_modifier": 5e-5}),
    "AgentMixer": ("agent_mixer", {**MODIFIER, "lr_modifier": 1e-2, "strength": ANNEALED}),
    "AgentMixer, lr 5e-3": ("agent_mixer", {**MODIFIER, "lr_modifier": 5e-3, "strength": ANNEALED}),
}


def run(job: tuple[str, str, int, int, int]) -> dict[str, Any]:
    """Train one method on one game with one seed; the payoff of what it deploys."""
    game, method, seed, frames, batch = job
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    name, options = GAMES[game]
    env = make_env(name, num_envs=batch, seed=seed, **options)
    eval_env = make_env(name, num_envs=1, seed=seed, **options)
    algorithm_name, config = METHODS[method]
    algorithm = make_algorithm(algorithm_name, env, frames, config)
    loop = LoopConfig(
        total_frames=frames, frames_per_batch=batch, eval_interval=frames, eval_steps=1
    )
    with tempfile.TemporaryDirectory() as folder:
        row = train(algorithm, env, eval_env, loop, RunDirectory(folder))
    return {
        "game": game,
        "method": method,
        "seed": seed,
        "frames": frames,
        "decentralized_modes": row["eval_return"],
        "joint_policy": row["score"],
    }


def table(rows: list[dict[str, Any]], game: str) -> str:
    lines = [f"| {game} | seeds | decentralized modes | joint policy, mean |", "|---|---|---|---|"]
    for method in METHODS:
        mine = [row for row in rows if row["game"] == game and row["method"] == method]
        if mine:
            counts = Counter(row["decentralized_modes"] for row in mine)
            shown = ", ".join(f"{value:g} in {n}" for value, n in counts.most_common())
            joint = sum(row["joint_policy"] for row in mine) / len(mine)
            lines.append(f"| {method} | {len(mine)} | {shown} | {joint:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=5_000, help="games in one batch")
    parser.add_argument("--games", nargs="+", choices=GAMES, default=list(GAMES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="write every seed's result here, too")
    arguments = parser.parse_args()

    jobs = [
        (game, method, seed, arguments.frames, arguments.batch)
        for game in arguments.games
        for method in arguments.methods
        for seed in range(arguments.seeds)
    ]
    rows = []
    with get_context("spawn").Pool(arguments.processes) as pool:
        for row in pool.imap(run, jobs):
            rows.append(row)
            print(
                f"{row['game']}, {row['method']}, seed {row['seed']}: "
                f"{row['decentralized_modes']:g}",
                flush=True,
            )
    for game in arguments.games:
        print("\n" + table(rows, game))
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
