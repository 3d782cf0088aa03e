"""``examples/plain_mappo.py`` with AgentMixer's joint policy: what one ends with.

python examples/plain_mappo_agentmixer.py --actions discrete

``docs/how_to/existing_script.md`` shows the lines that differ.
"""

from __future__ import annotations

import argparse

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, MultiAgentMLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss, ValueEstimators

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.envs import VmasTeamEnv as VmasEnv


def main(actions: str, frames: int, seed: int) -> float:
    torch.manual_seed(seed)
    continuous = actions == "continuous"
    options = {"scenario": "navigation", "max_steps": 100, "n_agents": 3, "collisions": False}
    env = VmasEnv(num_envs=60, continuous_actions=continuous, seed=seed, **options)
    env_test = VmasEnv(num_envs=100, continuous_actions=continuous, seed=seed + 1, **options)
    observation = env.observation_spec["agents", "observation"].shape[-1]
    action = env.full_action_spec_unbatched[env.action_key]
    size = 2 * action.shape[-1] if continuous else action.space.n
    layers = {"depth": 2, "num_cells": 64, "activation_class": nn.Tanh}

    actor = MultiAgentMLP(observation, size, 3, centralized=False, share_params=True, **layers)
    actor = nn.Sequential(actor, NormalParamExtractor()) if continuous else actor
    params = [("agents", name) for name in (("loc", "scale") if continuous else ("logits",))]
    policy = ProbabilisticActor(
        TensorDictModule(actor, [("agents", "observation")], params),
        spec=env.full_action_spec_unbatched,
        in_keys=params,
        out_keys=[env.action_key],
        distribution_class=TanhNormal if continuous else Categorical,
        return_log_prob=True,
    )
    if continuous:  # joint scales of about 1, like the actor's scales
        scale = {"num_components": 0, "scale_bound": 2.0, "scale_gain": 1.0}
        form = {"modifier_kwargs": scale, "distribution": "tanh_normal"}
    else:  # Eq. 12 with an exact mode
        modifier = {"num_components": 0, "channels": 64, "head_gain": 1.0}
        form = {"modifier_kwargs": modifier, "strength": 1, "temperature": 1, "consistency": 1}
    policy = AgentMixerPolicy.from_actor(policy, env, **form)
    module = MLP(env.observation_spec["state"].shape[-1], 1, **layers)
    critic = ValueOperator(module, in_keys=["state"])

    collector = Collector(env, policy, frames_per_batch=6_000, total_frames=frames)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(6_000), sampler=SamplerWithoutReplacement(), batch_size=1_000
    )
    loss = ClipPPOLoss(policy, critic, entropy_coeff=0.0, normalize_advantage=True)
    loss.set_keys(reward=env.reward_key, action=env.action_key)
    loss.make_value_estimator(ValueEstimators.GAE, gamma=0.99, lmbda=0.9)
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-4)
    for batch in collector:
        with torch.no_grad():
            loss.value_estimator(batch, params=loss.critic_network_params)
        buffer.extend(batch.reshape(-1))
        for _ in range(10 * len(buffer) // 1_000):
            optimizer.zero_grad()
            losses = loss(buffer.sample())
            sum(losses[f"loss_{name}"] for name in ("objective", "critic", "entropy")).backward()
            nn.utils.clip_grad_norm_(loss.parameters(), 10.0)
            optimizer.step()

    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        rollout = env_test.rollout(100, policy.decentralized(), break_when_any_done=False)
    done = rollout["next", "done"].squeeze(-1).int()
    first = done.cumsum(1) == done  # the first episode of each environment
    score = float((rollout["next", env.reward_key].flatten(2).mean(-1) * first).sum(1).mean())
    print(f"return of the decentralized modes: {score:.2f}")
    return score


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actions", choices=["continuous", "discrete"], default="continuous")
    parser.add_argument("--frames", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
