"""Mixtures of joint policies on one-shot games, by exact gradients without networks.

    python benchmarks/tabular_games.py

Individual logits, perturbations and component weights are free parameters of a one-shot game, and
Adam follows the exact gradient of the expected payoff while the strength of the noise is annealed
to zero. The table has the number of seeds (of 64) whose individual modes reach the optimum.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from common import print_rows

from torchrl_agentmixer.distributions import IGCMixture
from torchrl_agentmixer.envs import climbing, penalty

GAMES = {"climbing": climbing(), "penalty -25": penalty(-25.0), "penalty -100": penalty(-100.0)}


def optima(
    payoff: torch.Tensor,
    n_components: int,
    strength: float,
    *,
    seeds: int,
    steps: int = 600,
    lr: float = 5e-3,
    lr_perturbation: float = 2e-2,
    lr_weights: float = 0.1,
    entropy_coeff: float = 0.01,
) -> int:
    """Number of seeds whose individual modes reach the optimum of ``payoff`` ``[K, K]``."""
    torch.manual_seed(0)
    shape = (seeds, payoff.ndim)
    logits = (0.01 * torch.randn(*shape, len(payoff))).requires_grad_()
    perturbation = torch.randn(*shape, n_components, len(payoff)).requires_grad_()
    weights = torch.zeros(seeds, n_components, requires_grad=True)
    optimizer = torch.optim.Adam(
        [
            {"params": [logits], "lr": lr},
            {"params": [perturbation], "lr": lr_perturbation},
            {"params": [weights], "lr": lr_weights},
        ]
    )
    joint = torch.tensor(list(itertools.product(*map(range, payoff.shape))))[:, None]  # [J, 1, n]
    rewards = payoff.flatten()[:, None]
    for step in range(steps):
        annealed = strength * max(0.0, 1 - step / (steps * 2 / 3))
        dist = IGCMixture(logits, perturbation, weights, strength=annealed)
        probs = dist.log_prob(joint.expand(-1, *shape)).exp()  # [J, seeds]
        mean = (probs * rewards).sum(0)
        deviation = ((probs * rewards**2).sum(0) - mean**2).clamp_min(0).sqrt().detach() + 1e-3
        optimizer.zero_grad()
        (-(mean / deviation) - entropy_coeff * dist.entropy()).sum().backward()
        optimizer.step()
    deployed = payoff[tuple(logits.argmax(-1).unbind(-1))]
    return int((deployed == payoff.max()).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--components", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0, 4.0])
    arguments = parser.parse_args()
    pairs = itertools.product(arguments.components, arguments.strengths)
    for index, (n_components, strength) in enumerate(pairs):
        found = {
            game: f"{optima(x, n_components, strength, seeds=arguments.seeds)} of {arguments.seeds}"
            for game, x in GAMES.items()
        }
        row = {"components": n_components, "strength": f"{strength:g}", **found}
        print_rows([row], header=index == 0)


if __name__ == "__main__":
    main()
