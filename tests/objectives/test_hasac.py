"""HASAC's actor loss against a plain transcription."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.nn.functional import softplus

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import JointActionCritic
from torchrl_agentmixer.objectives import HASACLoss
from torchrl_agentmixer.policies import actor_module, product_policy

KEYS = pytest.mark.parametrize("state_key", ["state", ("world", "state")], ids=["flat", "nested"])


def make_loss(n_agents, state_key="state"):
    """A loss with alpha 0.3, its critics and actor, and a batch of 7 with random actions."""
    torch.manual_seed(0)
    group = AgentGroup("team", n_agents, observation_dim=4, action_dim=2, discrete=False)
    actor = actor_module(group, scale_head=True)
    critics = [JointActionCritic(5, n_agents * 2, hidden=(8,)) for _ in range(2)]
    with torch.no_grad():
        for module, noise in ((actor, 0.1), *((critic, 0.3) for critic in critics)):
            for parameter in module.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
    keys = [state_key, ("team", "action")]
    modules = [TensorDictModule(critic, keys, ["state_action_value"]) for critic in critics]
    policy = product_policy([group], [actor], "tanh_normal")
    loss = HASACLoss(policy, modules, alpha_init=0.3, target_entropy=-2.0 * n_agents)
    loss.set_keys(action=("team", "action"))
    team = {
        "observation": torch.randn(7, n_agents, 4),
        "action": torch.rand(7, n_agents, 2) * 2 - 1,
    }
    data = TensorDict({"team": team}, [7]).set(state_key, torch.randn(7, 5))
    return loss, policy, critics, data


def own_dist(policy, data, index):
    """One agent's policy, from the joint policy's parameters."""
    joint = policy.get_dist(data.copy())
    own = slice(index, index + 1)
    return type(joint)(joint.loc[:, own], joint.scale[:, own])


@KEYS
@pytest.mark.parametrize("index", [0, 1, 2])
def test_objective_is_its_transcription(state_key, index):
    """``E[alpha log pi_i - min_k Q_k]``: the others' actions are given, the own one is drawn."""
    loss, policy, critics, data = make_loss(3, state_key)
    before = data.clone()
    torch.manual_seed(1)
    out, log_prob = loss.agent_loss(data, own_dist(policy, data, index), index)
    torch.manual_seed(1)
    written = policy[0](data.clone())["team"]
    loc, scale = written["loc"][:, index], written["scale"][:, index]
    x = loc + scale * torch.normal(torch.zeros(7, 1, 2), torch.ones(7, 1, 2))[:, 0]
    density = -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    expected_log_prob = (density - 2 * (math.log(2) - x - softplus(-2 * x))).sum(-1)
    joint = data["team", "action"].clone()
    joint[:, index] = x.tanh()
    values = torch.cat([critic(data[state_key], joint) for critic in critics], -1)
    assert 0 < (values[:, 0] < values[:, 1]).sum() < 7  # the smaller critic differs by sample
    expected = (0.3 * expected_log_prob - values.amin(-1)).mean()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(log_prob, expected_log_prob.detach())
    parameters = list(policy.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(torch.autograd.grad(out, parameters, retain_graph=True), wanted)
    for key, value in before.items(True, True):  # the batch is not modified
        assert torch.equal(data[key], value)
    out.backward()  # neither critics nor alpha learn from it
    assert all(p.grad is None for p in [*loss.qvalue_network_params.parameters(), loss.log_alpha])


def test_the_own_stored_action_is_not_read_and_the_others_are():
    loss, policy, _, data = make_loss(3)
    results = []
    for changed in (None, 1, 0, 2):
        other = data.clone()
        if changed is not None:
            other["team", "action"][:, changed] *= -0.5
        torch.manual_seed(1)
        results.append(loss.agent_loss(other, own_dist(policy, data, 1), 1)[0].item())
    assert results[1] == results[0]
    assert results[2] != results[0]
    assert results[3] != results[0]


def test_one_agent_is_sac():
    loss, policy, _, data = make_loss(1)
    torch.manual_seed(1)
    out, log_prob = loss.agent_loss(data, policy.get_dist(data.copy()), 0)
    torch.manual_seed(1)
    expected, metadata = loss.actor_loss(data.copy())
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(log_prob, metadata["log_prob"])
