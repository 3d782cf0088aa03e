"""AgentMixer from single modules, with TorchRL's own Collector, GAE and ClipPPOLoss, unchanged.

python examples/compose_by_hand.py
"""

from __future__ import annotations

import argparse

import torch
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_agentmixer import AgentMixerPolicy, ModifierGroup, PolicyModifier, agent_groups
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.modules import CategoricalActor, CentralCritic
from torchrl_agentmixer.training import evaluate


def main(frames: int, seed: int = 0) -> float:
    torch.manual_seed(seed)
    env = make_env("matrix/penalty", num_envs=400, k=-25.0, seed=seed)
    (group,) = agent_groups(env)

    # Decentralized actors: each agent's own observation in, logits and features out.
    network = CategoricalActor(group.n_agents, group.observation_dim, group.action_dim)
    actor = TensorDictModule(
        network,
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "logits"), ("agents", "features")],
    )
    # The Policy Modifier reads all individual policies and the state.
    spec = ModifierGroup(
        group.n_agents,
        params_dim=group.action_dim,
        out_dim=group.action_dim,
        features_dim=network.features_dim,
    )
    modifier = PolicyModifier([spec], state_dim=env.observation_spec["state"].shape[-1])
    policy = AgentMixerPolicy([group], [actor], modifier)
    critic = TensorDictModule(CentralCritic(1), in_keys=["state"], out_keys=["state_value"])

    gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(policy, critic, entropy_coeff=0.01, normalize_advantage=True)
    loss.set_keys(action=("agents", "action"))
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)

    collector = Collector(env, policy, frames_per_batch=400, total_frames=frames)
    for iteration, batch in enumerate(collector):
        policy.set_coefficients(strength=max(0.0, 1 - 1.5 * iteration * 400 / frames))
        with torch.no_grad():
            gae(batch)
        for _ in range(4):
            losses = loss(batch.reshape(-1))
            total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    collector.shutdown()

    payoff = evaluate(policy.decentralized(), env, max_steps=1).score
    print(f"payoff of the decentralized modes: {payoff:g} (optimum 10)")
    return payoff


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=80_000)
    main(parser.parse_args().frames)
