"""HAPPO's actor loss against a plain transcription."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import ClipPPOLoss

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.objectives import HAPPOLoss
from torchrl_agentmixer.policies import actor_module, product_policy

KEYS = {
    "advantage": ("learning", "advantage"),
    "factor": ("learning", "earlier", "factor"),
    "sample_log_prob": ("old", "log_prob"),
    "action": ("agents", "action"),
}
FLAT = {**KEYS, "advantage": "advantage", "factor": "factor", "sample_log_prob": "old_log_prob"}


@pytest.fixture
def policy():
    """One agent with three actions, with random parameters."""
    torch.manual_seed(0)
    group = AgentGroup("agents", n_agents=1, observation_dim=4, action_dim=3, discrete=True)
    policy = product_policy([group], [actor_module(group, head_gain=2.0)], joint=False)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy


def batch(policy, keys, n=200):
    """Samples of the policy, with old log-probabilities that differ from the current ones."""
    data = policy(TensorDict({"agents": {"observation": torch.randn(n, 1, 4)}}, [n])).detach()
    log_prob = data.pop(("agents", "action_log_prob"))
    data[keys["sample_log_prob"]] = log_prob + 0.4 * torch.randn(n, 1)
    data[keys["advantage"]] = torch.randn(n, 1)
    data[keys["factor"]] = torch.rand(n, 1) * 2
    return data


def log_prob_by_hand(policy, data):
    logits = policy[0](data.clone())["agents", "logits"]
    return logits.log_softmax(-1).gather(-1, data["agents", "action"].unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("keys", [FLAT, KEYS], ids=["flat", "nested"])
@pytest.mark.parametrize("clip_epsilon", [0.2, (0.1, 0.4)])
def test_objective_is_its_transcription(policy, keys, clip_epsilon):
    """``-E[min(r M, clip(r) M)]`` with ``M = factor * A``, not standardized."""
    data = batch(policy, keys)
    loss = HAPPOLoss(policy, clip_epsilon=clip_epsilon)
    loss.set_keys(**keys)
    before = data.clone()
    ratio = (log_prob_by_hand(policy, data) - data[keys["sample_log_prob"]]).exp()
    torch.testing.assert_close(loss.ratio(data), ratio.detach())
    low, high = clip_epsilon if isinstance(clip_epsilon, tuple) else (clip_epsilon, clip_epsilon)
    m = data[keys["factor"]] * data[keys["advantage"]]
    terms = [
        min(r * x, min(max(r, 1 - low), 1 + high) * x)
        for r, x in zip(ratio.flatten().tolist(), m.flatten().tolist(), strict=True)
    ]
    clipped = ratio.clamp(1 - low, 1 + high)
    assert 0.1 < (clipped != ratio).float().mean() < 0.9
    out = loss(data)["loss_objective"]
    assert out.item() == pytest.approx(-sum(terms) / len(terms), rel=1e-5)
    expected = -torch.min(ratio * m, clipped * m).mean()
    parameters = list(policy.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(torch.autograd.grad(out, parameters), wanted)
    for key, value in before.items(True, True):  # the batch is not modified
        assert torch.equal(data[key], value)


def test_a_factor_of_one_is_ppo(policy):
    data = batch(policy, FLAT)
    data["factor"].fill_(1.0)
    loss = HAPPOLoss(policy, entropy_coeff=0.02)
    ppo = ClipPPOLoss(policy, None, entropy_coeff=0.02, normalize_advantage=False)
    loss.set_keys(**FLAT)
    ppo.set_keys(**{key: value for key, value in FLAT.items() if key != "factor"})
    got, expected = loss(data.clone()), ppo(data.clone())
    for name in ("loss_objective", "loss_entropy"):
        torch.testing.assert_close(got[name], expected[name])


def test_unknown_keys_are_an_error(policy):
    with pytest.raises(ValueError, match="factors"):
        HAPPOLoss(policy).set_keys(factors="x")
