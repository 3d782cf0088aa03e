"""How far from equilibria AgentMixer's joint forms end, on one-shot games.

    python benchmarks/equilibrium_gaps.py
    python benchmarks/equilibrium_gaps.py --games climbing --seeds 2 --frames 25000

For each game and form: the payoff of the joint policy and of the individual modes, the
correlated-equilibrium gap of the joint policy, averaged over its correlation seed, and the Nash gap
of the individual policies; the mean and, in brackets, the largest over the seeds. `--csv` writes
every seed.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from torchrl.envs import TransformedEnv

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.diagnostics import (
    correlated_equilibrium_gap,
    joint_action_probs,
    nash_gap,
)
from torchrl_agentmixer.envs import CorrelationSeed, climbing, make_env, penalty

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
EQ_12 = ONE_SHOT | {"form": "perturbation", "strength": 1.0}
FORMS: dict[str, dict[str, Any]] = {
    "mixture, annealed (default)": ONE_SHOT | {"strength": {"start": 4, "end": 0, "until": 0.667}},
    "Eq. 12": EQ_12,
    "Eq. 12, seed": EQ_12 | {"seed_dim": 8},
    "Eq. 12, consistent": EQ_12 | {"consistency": 1.0},
    "Eq. 12, consistent, seed": EQ_12 | {"consistency": 1.0, "seed_dim": 8},
}


def train(game: str, form: str, seed: int, frames: int) -> dict[str, float]:
    """Gaps and payoffs after ``frames`` games, in batches of 2,500."""
    name, kwargs, payoff = GAMES[game]
    options = FORMS[form]
    torch.manual_seed(seed)
    env = make_env(name, num_envs=2_500, seed=seed, **kwargs)
    if options.get("seed_dim"):
        env = TransformedEnv(env, CorrelationSeed(options["seed_dim"]))
    algorithm = make_algorithm("agent_mixer", env, frames, options)
    for _ in range(frames // 2_500):
        with torch.no_grad():
            batch = env.rollout(1, algorithm.policy, break_when_any_done=False)
        algorithm.update(batch)
    with torch.no_grad():
        states = env.reset()  # they differ in the correlation seed alone
        joint = joint_action_probs(algorithm.policy.get_dist(states.copy())).mean(0)
        individual = joint_action_probs(algorithm.individual_policy.get_dist(states.copy()))[0]
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
    parser.add_argument("--csv", type=Path, help="a file for the figures of every seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print("| game | form | joint payoff | of the modes | correlated gap | Nash gap |")
    print("|---|---|---|---|---|---|")
    for game in options.games:
        for form in FORMS:
            runs = [train(game, form, seed, options.frames) for seed in range(options.seeds)]
            rows += [{"game": game, "form": form, "seed": i, **run} for i, run in enumerate(runs)]
            cells = []
            for column in runs[0]:
                values = [run[column] for run in runs]
                worst = f" ({max(values):.3f})" if "gap" in column else ""
                cells.append(f"{sum(values) / len(values):.3f}{worst}")
            print(f"| {game} | {form} | " + " | ".join(cells) + " |", flush=True)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
