"""IGC distributions in a plain MAPPO script of TorchRL's style: only the actor is new.

    python examples/drop_in.py --actions continuous
    python examples/drop_in.py --actions discrete

A second network reads the state and writes the joint scale (``IGCNormal``) or the perturbation
(``IGCCategorical``); the joint policy's mode stays the individual network's.
"""

from __future__ import annotations

import argparse

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.modules import MLP, MultiAgentMLP, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_agentmixer import IGCCategorical, IGCNormal
from torchrl_agentmixer.envs import make_env


def main(actions: str, frames: int) -> float:
    torch.manual_seed(0)
    continuous = actions == "continuous"
    env = make_env("vmas/predator_prey", num_envs=32, continuous_actions=continuous, seed=0)
    n, observation = env.observation_spec["agents", "observation"].shape[-2:]
    state = env.observation_spec["state"].shape[-1]
    size = 2 if continuous else env.full_action_spec["agents", "action"].space.n

    params = {"loc": 2 * size, "own_scale": 0} if continuous else {"logits": size}
    outputs = sum(params.values())
    individual = MultiAgentMLP(observation, outputs, n, centralized=False, share_params=True)
    deviation = nn.Sequential(MLP(state, n * size, num_cells=[64]), nn.Unflatten(-1, (n, size)))
    if continuous:
        individual = nn.Sequential(individual, NormalParamExtractor())
        deviation.append(nn.Sigmoid())
    actor = ProbabilisticActor(
        TensorDictSequential(
            TensorDictModule(
                individual, [("agents", "observation")], [("agents", p) for p in params]
            ),
            TensorDictModule(deviation, ["state"], [("agents", "deviation")]),
        ),
        in_keys={"loc": ("agents", "loc"), "scale": ("agents", "deviation")}
        if continuous
        else {"logits": ("agents", "logits"), "perturbation": ("agents", "deviation")},
        out_keys=[("agents", "action")],
        distribution_class=IGCNormal if continuous else IGCCategorical,
        distribution_kwargs={} if continuous else {"consistency": 1.0},
        return_log_prob=True,
        log_prob_key="action_log_prob",
    )
    critic = TensorDictModule(MLP(state, 1, num_cells=[64]), ["state"], ["state_value"])
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4)

    for batch in Collector(env, actor, frames_per_batch=3_200, total_frames=frames):
        with torch.no_grad():
            gae(batch)
        for minibatch in batch.reshape(-1).split(800):
            losses = loss(minibatch)
            optimizer.zero_grad()
            sum(losses[f"loss_{name}"] for name in ("objective", "critic", "entropy")).backward()
            optimizer.step()
        score = batch["next", "reward"].mean().item()
        print(f"team reward per step {score:+.4f}")
    return score


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actions", choices=["continuous", "discrete"], default="continuous")
    parser.add_argument("--frames", type=int, default=32_000)
    main(**vars(parser.parse_args()))
