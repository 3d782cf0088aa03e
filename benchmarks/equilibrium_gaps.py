"""Equilibrium gaps of AgentMixer's joint policies on one-shot games.

    python benchmarks/equilibrium_gaps.py
    python benchmarks/equilibrium_gaps.py --games climbing --seeds 2 --frames 25000

One row per game and form of the joint policy: payoffs of the joint policy and of the individual
modes, correlated-equilibrium gap of the joint policy, and Nash gap of the individual policies. Each
figure is the mean over seeds; brackets have the largest. `--csv` writes every seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import print_rows, write_csv

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.diagnostics import (
    correlated_equilibrium_gap,
    joint_action_probs,
    nash_gap,
)
from torchrl_agentmixer.envs import climbing, make_env, penalty

GAMES: dict[str, tuple[str, dict[str, float], torch.Tensor]] = {
    "climbing": ("matrix/climbing", {}, climbing()),
    "penalty_25": ("matrix/penalty", {"k": -25.0}, penalty(-25.0)),
    "penalty_100": ("matrix/penalty", {"k": -100.0}, penalty(-100.0)),
}
ONE_SHOT: dict[str, Any] = {
    "lr_modifier": 1e-2,
    "clip_epsilon": 0.2,
    "epochs": 15,
    "num_minibatches": 1,
}
EQ_12 = ONE_SHOT | {"num_components": 0, "strength": 1.0}
FORMS: dict[str, dict[str, Any]] = {
    "mixture, annealed": ONE_SHOT | {"strength": {"start": 4, "end": 0, "until": 0.667}},
    "Eq. 12": EQ_12,
    "Eq. 12, consistent": EQ_12 | {"consistency": 1.0},
}


def train(game: str, form: str, seed: int, frames: int) -> dict[str, float]:
    """Gaps and payoffs after ``frames`` games, in batches of 2,500."""
    name, kwargs, payoff = GAMES[game]
    torch.manual_seed(seed)
    env = make_env(name, num_envs=2_500, seed=seed, **kwargs)
    algorithm = make_algorithm("agent_mixer", env, frames, FORMS[form])
    for _ in range(frames // 2_500):
        with torch.no_grad():
            batch = env.rollout(1, algorithm.policy, break_when_any_done=False)
        algorithm.update(batch)
    with torch.no_grad():
        states = env.reset()[:1]  # all games have one state
        joint = joint_action_probs(algorithm.policy.get_dist(states.copy()))[0]
        product = algorithm.policy.decentralized(deterministic=False)
        individual = joint_action_probs(product.get_dist(states.copy()))[0]
        modes = algorithm.execution_policy(states)["agents", "action"][0]
    return {
        "joint_payoff": float((joint * payoff).sum()),
        "payoff_of_modes": float(payoff[tuple(modes)]),
        "correlated_gap": float(correlated_equilibrium_gap(payoff, joint).gap),
        "nash_gap": float(nash_gap(payoff, individual).gap),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", nargs="+", default=list(GAMES), choices=list(GAMES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--csv", type=Path, help="a file for every seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for game in options.games:
        for form in FORMS:
            runs = [train(game, form, seed, options.frames) for seed in range(options.seeds)]
            rows += [{"game": game, "form": form, "seed": i, **run} for i, run in enumerate(runs)]
            row = {"game": game, "form": form}
            for column in runs[0]:
                values = [run[column] for run in runs]
                worst = f" ({max(values):.3f})" if "gap" in column else ""
                row[column.replace("_", " ")] = f"{sum(values) / len(values):.3f}{worst}"
            print_rows([row], header=len(rows) == options.seeds)
    if options.csv:
        write_csv(rows, options.csv)


if __name__ == "__main__":
    main()
