"""Scores of complete runs in many episodes, for runs whose evaluations in training are too few.

    python benchmarks/final_scores.py runs/grids/predator_prey_0 runs/grids/predator_prey_1

Reward per step of the decentralized modes in ``--episodes`` episodes, for each run
``<folder>/<candidate>/<seed>`` of a study (``study.py``), their mean, and the share of episodes
that reach the time limit. Payoffs that vary by chance (``spread``) are replaced by their mean.

A few episodes count much: on the grid, agents that wait for each other until the time limit lower
the score by a fifth if it happens once in a hundred episodes, and more if the wait costs a penalty
in every step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch
from common import print_rows

from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.experiment import load_run
from torchrl_agentmixer.training import evaluate


def final_score(run: Path, episodes: int) -> tuple[float, float]:
    """Score, and share of episodes that reach the time limit."""
    algorithm, env, config = load_run(run, num_envs=episodes)
    if config.env.kwargs.get("spread"):
        if config.normalize_observations:
            raise SystemExit(
                f"{run}: expected normalize_observations=false with a spread, got true."
            )
        kwargs = {**config.env.kwargs, "spread": 0.0}
        env = make_env(config.env.name, num_envs=episodes, **kwargs)
    steps = config.env.eval_steps
    result = evaluate(algorithm.execution_policy, env, max_steps=steps)
    return result.score, (result.lengths >= steps).float().mean().item()


def rows_of(folder: Path, episodes: int) -> Iterator[dict[str, str]]:
    """One row per candidate."""
    for candidate in sorted(path for path in folder.iterdir() if path.is_dir()):
        runs = sorted(path for path in candidate.iterdir() if path.name.isdecimal())
        if not runs:
            continue
        scores, late = zip(*(final_score(run, episodes) for run in runs), strict=True)
        yield {
            "environment": folder.name,
            "candidate": candidate.name,
            "seeds": " ".join(f"{score:.2f}" for score in scores),
            "mean": f"{fmean(scores):.2f}",
            "time limit": " ".join(f"{share:.2%}" for share in late),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="runs of an environment")
    parser.add_argument("--episodes", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = False
    for folder in arguments.folders:
        for row in rows_of(folder, arguments.episodes):
            print_rows([row], header=not found)
            found = True
    if not found:
        raise SystemExit(
            f"{arguments.folders}: expected runs <folder>/<candidate>/<seed>, got none."
        )


if __name__ == "__main__":
    main()
