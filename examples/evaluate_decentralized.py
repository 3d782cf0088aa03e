"""Load a run and execute its decentralized actors: observations in, actions out, nothing else.

python examples/evaluate_decentralized.py runs/grid_predator_prey/agent_mixer/seed_0_...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import make_env, normalize_observations
from torchrl_agentmixer.training import evaluate, record_gif


def main(run: Path, episodes: int, gif: Path | None = None) -> float:
    config = json.loads((run / "config.json").read_text())
    options = dict(config["algorithm"])
    env = make_env(config["env"]["name"], num_envs=episodes, **config["env"]["kwargs"])
    if config.get("normalize_observations"):
        statistics = torch.load(run / "normalization.pt", weights_only=True)
        env = normalize_observations(env, like=statistics)
    algorithm = make_algorithm(options.pop("name"), env, 1, options)
    algorithm.load_state_dict(torch.load(run / "algorithm.pt", weights_only=True))

    actors = algorithm.execution_policy
    steps = config["env"]["eval_steps"]
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
