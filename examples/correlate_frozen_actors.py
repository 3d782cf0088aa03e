"""Imitate, then correlate: a Policy Modifier around a trained team whose actors stay as they are.

python examples/correlate_frozen_actors.py --seeds 0 1 2

A MAPPO team is trained and frozen; then the Policy Modifier learns, and nothing else. The joint
policy reads the state, so what it gains is a centralized gain; decentralized execution is that of
the frozen actors, bit for bit.
"""

from __future__ import annotations

import argparse

import torch
from torchrl.collectors import Collector
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.algorithms import MAPPO, PPOConfig
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.modules import CentralCritic, value_module
from torchrl_agentmixer.training import evaluate


def batches(env, policy, frames: int):
    yield from Collector(env, policy, frames_per_batch=5_000, total_frames=frames)


def correlate(policy: AgentMixerPolicy, env, frames: int, epochs: int = 5) -> None:
    """PPO on the joint policy (Eq. 13), with gradients for the Policy Modifier alone."""
    critic = value_module(CentralCritic(env.observation_spec["state"].shape[-1], input_norm=False))
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(policy, critic, entropy_coeff=0.0, normalize_advantage=True)
    loss.set_keys(action=policy.action_keys)
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=1e-3)
    for batch in batches(env, policy, frames):
        with torch.no_grad():
            gae(batch)
        for minibatch in (m for _ in range(epochs) for m in batch.reshape(-1).split(1_250)):
            losses = loss(minibatch)
            optimizer.zero_grad()
            sum(losses[f"loss_{name}"] for name in ("objective", "critic", "entropy")).backward()
            optimizer.step()


def main(seed: int, frames: int, env_name: str = "grid/predator_prey") -> dict[str, float]:
    torch.manual_seed(seed)
    env = make_env(env_name, num_envs=125, seed=seed, penalty=0.0)
    team = MAPPO(env, frames, PPOConfig(epochs=5, num_minibatches=4))
    for batch in batches(env, team.policy, frames):
        team.update(batch)

    (*actors, _) = team.policy.module  # without the distribution they sample from
    actor = actors[0].requires_grad_(False)
    frozen = {name: value.clone() for name, value in actor.state_dict().items()}
    policy = AgentMixerPolicy.from_actor(actor, env, form="perturbation")

    test = make_env(env_name, num_envs=500, seed=seed + 1, penalty=0.0)

    def score(policy, deterministic: bool = False) -> float:
        return evaluate(policy, test, max_steps=128, deterministic=deterministic).score

    scores = {
        "individual": score(policy.decentralized(deterministic=False)),
        "joint_before": score(policy),
    }
    correlate(policy, env, frames)
    scores["joint"] = score(policy)
    scores["joint_mode"] = score(policy, True)
    scores["individual_mode"] = score(policy.decentralized())
    scores["moved"] = max(float((frozen[n] - v).abs().max()) for n, v in actor.state_dict().items())
    print(f"seed {seed}: " + " ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        main(seed, arguments.frames)
