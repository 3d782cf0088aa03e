"""Load a run and evaluate its decentralized actors, which read observations only.

python examples/evaluate_decentralized.py runs/grid_predator_prey/agent_mixer/seed_0_...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_agentmixer.experiment import load_run
from torchrl_agentmixer.training import evaluate, record_gif


def main(run: Path, episodes: int, gif: Path | None = None) -> float:
    algorithm, env, config = load_run(run, num_envs=episodes)
    actors, steps = algorithm.execution_policy, config.env.eval_steps
    print(f"reads {actors.in_keys}, writes {actors.out_keys}")
    for seed in range(3):
        result = evaluate(actors, env, max_steps=steps, seed=seed)
        print(f"seed {seed}: {result.metrics('team')}")
    if gif is not None:
        print(f"animation: {record_gif(actors, env, gif, max_steps=steps)}")
    return result.score


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--gif", type=Path)
    arguments = parser.parse_args()
    main(arguments.run, arguments.episodes, arguments.gif)
