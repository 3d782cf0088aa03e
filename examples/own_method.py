"""A new method in fifty lines: MAPPO with optimistic advantages.

    python examples/own_method.py --seeds 0 1 2

Optimistic MAPPO (`arXiv 2311.01953 <https://arxiv.org/abs/2311.01953>`_) multiplies negative
standardized advantages by a leak in [0, 1]: an agent is not taught to avoid what failed because its
partners had not learned their part yet. ``docs/contributing.md`` explains the steps.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass

import torch
from torch.nn.functional import leaky_relu
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms import MAPPO, PPOConfig, register_algorithm
from torchrl_agentmixer.config import ExperimentConfig
from torchrl_agentmixer.experiment import run
from torchrl_agentmixer.objectives import HuberPPOLoss


@dataclass(kw_only=True)
class OptimisticMAPPOConfig(PPOConfig):
    """Hyperparameters of optimistic MAPPO.

    Args:
        leak: factor of negative advantages; 1 is MAPPO.
    """

    leak: float = 0.0


class OptimisticMAPPO(MAPPO):
    """MAPPO whose negative standardized advantages are multiplied by a leak."""

    def __init__(
        self, env: EnvBase, total_frames: int, config: OptimisticMAPPOConfig | None = None
    ) -> None:
        config = config or OptimisticMAPPOConfig()
        super().__init__(env, total_frames, config)

        def optimistic(advantage: torch.Tensor, exclude_dims=()) -> torch.Tensor:
            return leaky_relu(self.standardize(advantage, exclude_dims=exclude_dims), config.leak)

        for module in self.modules():
            if isinstance(module, HuberPPOLoss):
                module.standardize = optimistic


def main(seeds: list[int], frames: int) -> dict[str, list[float]]:
    register_algorithm("optimistic_mappo", OptimisticMAPPO, OptimisticMAPPOConfig)
    env = {"name": "matrix/climbing", "num_envs": 50, "total_frames": frames, "eval_envs": 1}
    env |= {"frames_per_batch": 2_500, "eval_interval": frames, "eval_steps": 1}
    payoffs: dict[str, list[float]] = {"mappo": [], "optimistic_mappo": []}
    for name, found in payoffs.items():
        for seed in seeds:
            values = {"env": env, "algorithm": {"name": name}, "seed": seed}
            values |= {"plots": False, "num_threads": 1}
            row = run(ExperimentConfig.from_dict(values), tempfile.mkdtemp())
            found.append(row["eval_return"])
        print(f"{name}: payoff of the modes by seed {found} (optimum 11)")
    return payoffs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frames", type=int, default=100_000)
    main(**vars(parser.parse_args()))
