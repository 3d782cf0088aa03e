"""AgentMixer from single modules, with TorchRL's own Collector, GAE and ClipPPOLoss.

python examples/compose_by_hand.py
"""

from __future__ import annotations

import argparse

import torch
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.modules import MultiAgentMLP
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_agentmixer import AgentMixerPolicy, PolicyModifier, agent_groups
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.modules import CentralCritic
from torchrl_agentmixer.training import evaluate


def main(frames: int, seed: int = 0) -> float:
    torch.manual_seed(seed)
    env = make_env("matrix/penalty", num_envs=400, k=-25.0, seed=seed)
    (group,) = agent_groups(env)

    # Decentralized actors: any module that writes the individual policies' parameters.
    network = MultiAgentMLP(1, group.action_dim, 2, centralized=False, share_params=False)
    actor = TensorDictModule(network, [("agents", "observation")], [("agents", "logits")])
    # The Policy Modifier reads them and the state, and writes how the team deviates together.
    modifier = PolicyModifier([group], state_dim=1)
    policy = AgentMixerPolicy([group], [actor], modifier)
    critic = TensorDictModule(CentralCritic(1), in_keys=["state"], out_keys=["state_value"])

    gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(policy, critic, entropy_coeff=0.01, normalize_advantage=True)
    loss.set_keys(action=("agents", "action"))
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    collector = Collector(env, policy, frames_per_batch=400, total_frames=frames)
    for iteration, batch in enumerate(collector):
        policy.anneal(iteration * 400 / frames)  # to the product of the individual policies
        with torch.no_grad():
            gae(batch)
        for _ in range(4):
            losses = loss(batch.reshape(-1))
            optimizer.zero_grad()
            sum(losses[f"loss_{name}"] for name in ("objective", "critic", "entropy")).backward()
            optimizer.step()

    payoff = evaluate(policy.decentralized(), env, max_steps=1).score
    print(f"payoff of the decentralized modes: {payoff:g} (optimum 10)")
    return payoff


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=80_000)
    main(parser.parse_args().frames)
