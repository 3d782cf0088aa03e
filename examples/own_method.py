"""A new method in fifty lines: MAPPO with lenient agents.

    python examples/own_method.py --seeds 0 1 2

A lenient agent forgives: it ignores a negative advantage with a probability that falls to 0 over
training (after `Lenient Learning, Wei and Luke 2016
<https://jmlr.org/papers/v17/15-417.html>`_, for values in place of advantages). What failed because
partners had not learned their part yet is not unlearned. ``docs/contributing.md`` explains the
steps.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass

import torch
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms import MAPPO, PPOConfig, register_algorithm
from torchrl_agentmixer.config import ExperimentConfig
from torchrl_agentmixer.experiment import run
from torchrl_agentmixer.objectives import HuberPPOLoss


@dataclass(kw_only=True)
class LenientMAPPOConfig(PPOConfig):
    """Hyperparameters of lenient MAPPO.

    Args:
        leniency: initial probability of ignoring a negative advantage; 0 is MAPPO.
    """

    leniency: float = 1.0


class LenientMAPPO(MAPPO):
    """MAPPO that ignores negative standardized advantages with a falling probability."""

    def __init__(
        self, env: EnvBase, total_frames: int, config: LenientMAPPOConfig | None = None
    ) -> None:
        config = config or LenientMAPPOConfig()
        super().__init__(env, total_frames, config)

        def lenient(advantage: torch.Tensor, exclude_dims=()) -> torch.Tensor:
            advantage = self.standardize(advantage, exclude_dims=exclude_dims)
            probability = config.leniency * (1 - self.progress)
            forgiven = (advantage < 0) & (torch.rand_like(advantage) < probability)
            return advantage.masked_fill(forgiven, 0.0)

        for module in self.modules():
            if isinstance(module, HuberPPOLoss):
                module.standardize = lenient


def main(seeds: list[int], frames: int) -> dict[str, list[float]]:
    register_algorithm("lenient_mappo", LenientMAPPO, LenientMAPPOConfig)
    env = {"name": "matrix/climbing", "num_envs": 50, "total_frames": frames, "eval_envs": 1}
    env |= {"frames_per_batch": 2_500, "eval_interval": frames, "eval_steps": 1}
    payoffs: dict[str, list[float]] = {"mappo": [], "lenient_mappo": []}
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
