"""MAPPO's Huber value loss."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.modules import PopArtValueNorm

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.envs import make_env
from torchrl_agentmixer.objectives import HuberPPOLoss


def huber(error, delta):
    small = error.abs() <= delta
    return torch.where(small, 0.5 * error**2, delta * (error.abs() - 0.5 * delta))


def make_loss(policy, critic, **kwargs):
    loss = HuberPPOLoss(
        policy,
        critic,
        value_norm=PopArtValueNorm(shape=1),
        normalize_advantage_exclude_dims=(),
        **kwargs,
    )
    return loss


@pytest.mark.parametrize("value_key", ["state_value", ("critics", "central", "value")])
def test_against_a_transcription(value_key):
    """Huber at ``delta`` on normalized values, the larger of clipped or not; under any key."""
    torch.manual_seed(0)
    env = make_env("matrix/climbing", num_envs=64)
    policy = AgentMixerPolicy.from_env(env)
    critic = TensorDictModule(torch.nn.Linear(1, 1), ["state"], [value_key])
    loss = make_loss(policy, critic, huber_delta=0.5, clip_value=0.1, critic_coeff=2.0)
    loss.set_keys(action=("agents", "action"), value=value_key)
    data = env.rollout(1, policy).reshape(-1).detach()
    with torch.no_grad():
        data[value_key] = critic(data.copy())[value_key] - 3.0
    data["advantage"] = torch.randn(64, 1)
    data["value_target"] = 5 * torch.randn(64, 1)

    norm = copy.deepcopy(loss.value_norm)
    norm.update(data["value_target"])
    predicted = critic(data.copy())[value_key]
    actual = loss(data)["loss_critic"]

    value, old, target = (
        norm.normalize(x) for x in (predicted, data[value_key], data["value_target"])
    )
    clipped = old + (value - old).clamp(-0.1, 0.1)
    expected = torch.max(huber(value - target, 0.5), huber(clipped - target, 0.5)).mean()
    assert actual.item() == pytest.approx(2 * expected.item(), rel=1e-4)


def example(**kwargs):
    """A loss, a batch with advantages, and the ratios, which are 1."""
    torch.manual_seed(0)
    env = make_env("matrix/climbing", num_envs=64)
    policy = AgentMixerPolicy.from_env(env)
    critic = TensorDictModule(torch.nn.Linear(1, 1), ["state"], ["state_value"])
    loss = make_loss(policy, critic, **kwargs)
    loss.set_keys(action=("agents", "action"))
    data = critic(env.rollout(1, policy).reshape(-1)).detach()
    data["advantage"] = 2 + 3 * torch.randn(64, 1)
    data["value_target"] = torch.randn(64, 1)
    return loss, data


def test_standardize_replaces_torchrls():
    """``standardize`` gets ``exclude_dims``; at ratio 1 the objective is minus its mean."""
    calls = []

    def standardize(advantage, exclude_dims):
        calls.append((advantage.clone(), exclude_dims))
        return advantage + 10.0

    loss, data = example(standardize=standardize, normalize_advantage=True)
    out = loss(data)["loss_objective"].item()
    ((advantage, exclude_dims),) = calls
    assert torch.equal(advantage, data["advantage"])
    assert exclude_dims == ()
    assert out == pytest.approx(-(data["advantage"].mean().item() + 10), rel=1e-4)


def test_without_standardize_it_is_torchrls():
    loss, data = example(normalize_advantage=True)
    shifted = data.clone()
    shifted["advantage"] = 5 * data["advantage"] - 7
    assert loss(data.clone())["loss_objective"].item() == pytest.approx(0.0, abs=1e-5)
    # At a ratio of 1 the gradient is that of -A log pi with A of mean 0 and deviation 1.
    gradients = []
    for batch in (data, shifted):
        loss.zero_grad()
        loss(batch.clone())["loss_objective"].backward()
        grads = [p.grad.flatten() for p in loss.parameters() if p.grad is not None]
        gradients.append(torch.cat(grads))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    plain, data = example(normalize_advantage=False)
    expected = -data["advantage"].mean().item()
    assert plain(data)["loss_objective"].item() == pytest.approx(expected, rel=1e-4)


def test_thresholds_are_positive():
    with pytest.raises(ValueError, match="expected `huber_delta` > 0, got 0"):
        HuberPPOLoss(None, None, huber_delta=0.0)


@pytest.mark.parametrize("normalize", [False, True])
def test_optimism_reduces_negative_advantages(normalize):
    """The leak of OptiMAPPO after standardization, against a transcription at ratio 1."""
    loss, data = example(optimism=0.75, normalize_advantage=normalize)
    advantage = data["advantage"].double()
    if normalize:
        advantage = (advantage - advantage.mean()) / advantage.std()
    expected = -torch.where(advantage < 0, 0.25 * advantage, advantage).mean().item()
    assert loss(data.clone())["loss_objective"].item() == pytest.approx(expected, rel=1e-4)
    loss.optimism.fill_(0.0)
    without = -advantage.mean().item()
    assert loss(data)["loss_objective"].item() == pytest.approx(without, rel=1e-4, abs=1e-5)


def test_optimism_is_a_fraction():
    with pytest.raises(ValueError, match=r"expected `optimism` in \[0, 1\], got 2"):
        example(optimism=2.0)
