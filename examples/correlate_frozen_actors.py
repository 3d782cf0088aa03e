"""Train a Policy Modifier around frozen actors.

python examples/correlate_frozen_actors.py --seeds 0 1 2

The joint policy reads the state: its gain needs centralized execution. Decentralized execution is
that of the frozen actors, bit for bit. Prints the team reward per step, sampled and by modes.
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


def correlate(policy: AgentMixerPolicy, env, frames: int) -> None:
    """PPO on the joint policy (Eq. 13); of its parameters, only the Modifier's have gradients."""
    critic = value_module(CentralCritic(env.observation_spec["state"].shape[-1], input_norm=False))
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(policy, critic, normalize_advantage=True)
    loss.set_keys(action=policy.action_keys)
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=1e-3)
    for batch in Collector(env, policy, frames_per_batch=5_000, total_frames=frames):
        with torch.no_grad():
            gae(batch)
        for minibatch in 5 * batch.reshape(-1).split(1_250):
            losses = loss(minibatch)
            optimizer.zero_grad()
            sum(losses[f"loss_{name}"] for name in ("objective", "critic", "entropy")).backward()
            optimizer.step()


def main(seed: int, frames: int) -> tuple[AgentMixerPolicy, dict, dict[str, float]]:
    torch.manual_seed(seed)
    env = make_env("grid/predator_prey", num_envs=125, seed=seed, penalty=0.0)
    test = make_env("grid/predator_prey", num_envs=250, seed=seed + 1, penalty=0.0)
    team = MAPPO(env, frames, PPOConfig(num_minibatches=4, epochs=5))
    for batch in Collector(env, team.policy, frames_per_batch=5_000, total_frames=frames):
        team.update(batch)

    actor = team.policy.requires_grad_(False)
    frozen = {name: value.clone() for name, value in actor.state_dict().items()}
    eq_12 = {"num_components": 0, "channels": 64, "head_gain": 1.0}
    policy = AgentMixerPolicy.from_actor(
        actor, env, modifier_kwargs=eq_12, strength=1.0, temperature=1.0
    )
    correlate(policy, env, frames)

    def score(policy, deterministic: bool) -> float:
        return evaluate(policy, test, max_steps=128, deterministic=deterministic).score

    scores = {
        "frozen, sampled": score(policy.decentralized(deterministic=False), False),
        "joint, sampled": score(policy, False),
        "frozen, modes": score(policy.decentralized(), True),
        "joint, modes": score(policy, True),
    }
    print(f"seed {seed}: " + "; ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    return policy, frozen, scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        main(seed, arguments.frames)
