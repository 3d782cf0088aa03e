"""Decentralized actors: one batched call equals a loop over networks of single agents."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchrl_agentmixer.modules import CategoricalActor, GaussianActor, MultiAgentBody

ScaleHeadActor = partial(GaussianActor, scale_head=True)
ACTORS = pytest.mark.parametrize(
    "cls", [CategoricalActor, GaussianActor, ScaleHeadActor], ids=["logits", "scale", "scale head"]
)
SHARED = pytest.mark.parametrize("share_params", [False, True])
BATCHES = pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 1, 4)])


def layers(body, agent):
    """``{name: tensor}`` of one agent's network."""
    flat = body.params.flatten_keys(".")
    return {k: (v if body.share_params else v[agent]) for k, v in flat.items()}


def own_network(body, agent, x, *, input_norm, n_hidden, last):
    """Transcription: LayerNorm, Linear -> ReLU -> LayerNorm, and optionally a last Linear."""
    p, index = layers(body, agent), 0

    def norm(x, i):
        return F.layer_norm(x, x.shape[-1:], p[f"{i}.weight"], p[f"{i}.bias"])

    if input_norm:
        x, index = norm(x, 0), 1
    for _ in range(n_hidden):
        x = x @ p[f"{index}.weight"].mT + p[f"{index}.bias"]
        x = norm(x.clamp(min=0), index + 2)
        index += 3
    if last:
        x = x @ p[f"{index}.weight"].mT + p[f"{index}.bias"]
    assert len(p) == 2 * (input_norm + 2 * n_hidden + last)  # all parameters are used
    return x


def scramble(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.1, 0.5)
    return module


@ACTORS
@SHARED
@BATCHES
@pytest.mark.parametrize("hidden", [(16,), (12, 10)])
def test_actor_is_a_loop_over_the_agents_own_networks(cls, share_params, batch, hidden):
    actor = scramble(cls(3, 8, 5, hidden=hidden, share_params=share_params))
    observation = torch.randn(*batch, 3, 8)
    outputs = actor(observation)
    for i in range(3):
        x = observation[..., i, :]
        if share_params:  # the agent's one-hot is appended
            x = torch.cat([x, torch.eye(3)[i].expand(*batch, 3)], -1)
        features = own_network(actor.body, i, x, input_norm=True, n_hidden=len(hidden), last=False)
        first = own_network(actor.head, i, features, input_norm=False, n_hidden=0, last=True)
        torch.testing.assert_close(outputs[-1][..., i, :], features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outputs[0][..., i, :], first, rtol=1e-4, atol=1e-5)
        if cls is not CategoricalActor:
            p = (
                actor.scale_param[i]
                if cls is GaussianActor
                else own_network(
                    actor.scale_head, i, features, input_norm=False, n_hidden=0, last=True
                )
            )
            scale = 0.5 / (1 + torch.exp(-p))
            torch.testing.assert_close(outputs[1][..., i, :], scale.expand(*batch, 5))
    assert actor.features_dim == outputs[-1].shape[-1] == hidden[-1]
    assert outputs[0].shape == (*batch, 3, 5)


@ACTORS
@SHARED
@pytest.mark.parametrize("agent_one_hot", [None, True, False])
def test_no_agent_reads_another_agents_observation(cls, share_params, agent_one_hot):
    actor = scramble(cls(4, 6, 3, share_params=share_params, agent_one_hot=agent_one_hot))
    observation = torch.randn(7, 4, 6)
    outputs = actor(observation)
    for i in range(4):
        poisoned = torch.full_like(observation, math.nan)
        poisoned[:, i] = observation[:, i]
        for clean, other in zip(outputs, actor(poisoned), strict=True):
            assert torch.equal(clean[:, i], other[:, i])
            assert clean[:, i].isfinite().all()


@SHARED
def test_one_hot_makes_agents_differ(share_params):
    same = torch.randn(1, 1, 6).expand(2, 4, 6)
    shared = scramble(CategoricalActor(4, 6, 3, share_params=True))
    logits, _ = shared(same)
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3
    blind = scramble(CategoricalActor(4, 6, 3, share_params=True, agent_one_hot=False))
    logits, _ = blind(same)
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits))
    assert shared.agent_one_hot
    assert CategoricalActor(4, 6, 3, share_params=share_params).agent_one_hot is share_params


def test_shared_parameters_are_one_set():
    count = {
        shared: sum(p.numel() for p in CategoricalActor(5, 6, 3, share_params=shared).parameters())
        for shared in (False, True)
    }
    one = sum(p.numel() for p in CategoricalActor(1, 6, 3, agent_one_hot=False).parameters())
    assert count[False] == 5 * one
    # five more inputs (the one-hot): LayerNorm weight and bias, and 64 weights each
    assert count[True] == one + 5 * (2 + 64)


MEMORIES = pytest.mark.parametrize("memory_dim", [0, 7], ids=["feed-forward", "recurrent"])


def run(actor, observation, unroll=False):
    """The actor's outputs, with a random memory if recurrent, for a step or a sequence."""
    if not actor.memory_dim:
        return actor(observation)
    generator = torch.Generator().manual_seed(0)
    batch = observation.shape[: -3 if unroll else -2]
    memory = torch.randn(*batch, actor.n_agents, actor.memory_dim, generator=generator)
    is_init = torch.zeros(*observation.shape[:-2], 1, dtype=torch.bool)
    return actor(observation, memory, is_init, unroll=unroll)


@ACTORS
@MEMORIES
def test_every_parameter_has_an_agent_axis(cls, memory_dim):
    for name, parameter in cls(3, 6, 4, memory_dim=memory_dim).named_parameters():
        assert parameter.shape[0] == 3, name


@ACTORS
@MEMORIES
@pytest.mark.parametrize("unroll", [False, True], ids=["step", "sequence"])
def test_a_gradient_step_on_one_agents_loss_changes_that_agent_only(cls, memory_dim, unroll):
    """With separate parameters, agents 1 and 2 keep their parameters and outputs to the bit."""
    actor = scramble(cls(3, 6, 4, memory_dim=memory_dim))
    observation = torch.randn(5, 4, 3, 6)
    before = [output.detach() for output in run(actor, observation, unroll)]
    start = {name: parameter.detach().clone() for name, parameter in actor.named_parameters()}
    loss = sum(output[..., 0, :].square().sum() for output in run(actor, observation, unroll))
    loss.backward()
    torch.optim.Adam(actor.parameters(), lr=0.1).step()
    for name, parameter in actor.named_parameters():
        assert torch.equal(parameter[1:], start[name][1:]), name
        assert (parameter[0] != start[name][0]).any(), name
    for old, new in zip(before, run(actor, observation, unroll), strict=True):
        assert torch.equal(new[..., 1:, :], old[..., 1:, :])
        assert not torch.equal(new[..., 0, :], old[..., 0, :])


@SHARED
def test_memory_is_normalized_per_agent(share_params):
    """Features of a recurrent actor are LayerNorm of the memory, with each agent's own weights."""
    actor = scramble(CategoricalActor(3, 6, 4, memory_dim=7, share_params=share_params))
    logits, features, memory = run(actor, torch.randn(5, 3, 6))
    for i in range(3):
        expected = own_network(
            actor.memory_norm, i, memory[:, i], input_norm=True, n_hidden=0, last=False
        )
        torch.testing.assert_close(features[:, i], expected)
        head = own_network(actor.head, i, expected, input_norm=False, n_hidden=0, last=True)
        torch.testing.assert_close(logits[:, i], head)
    assert actor.features_dim == features.shape[-1] == 7


def test_separate_networks_start_apart_and_orthogonal():
    actor = CategoricalActor(3, 6, 4, head_gain=0.01)
    weights = {
        name: value
        for body in (actor.body, actor.head)
        for name, value in ((f"{id(body)}.{k}", v) for k, v in body.params.flatten_keys().items())
        if value.ndim == 3
    }
    assert len(weights) == 2
    gains = [math.sqrt(2), 0.01]
    for weight, gain in zip(weights.values(), gains, strict=True):
        assert (weight[0] - weight[1]).abs().max() > 1e-4
        values = torch.linalg.svdvals(weight)
        torch.testing.assert_close(values, torch.full_like(values, gain), rtol=1e-4, atol=1e-5)


def test_gaussian_scale_starts_as_the_authors_do():
    actor = GaussianActor(3, 6, 2, scale_bound=0.8)
    _, scale, _ = actor(torch.randn(4, 3, 6))
    torch.testing.assert_close(scale, torch.full((4, 3, 2), 0.8 / (1 + math.exp(-1))))
    assert actor.scale_param.shape == (3, 2)


@SHARED
def test_gaussian_scale_of_the_observation_starts_in_the_middle(share_params):
    actor = ScaleHeadActor(3, 6, 2, scale_bound=0.8, share_params=share_params)
    _, scale, _ = actor(torch.randn(4, 3, 6))
    torch.testing.assert_close(scale, torch.full((4, 3, 2), 0.4), atol=0.03, rtol=0)
    assert (scale[0] != scale[1]).all()


def test_body_with_and_without_its_parts():
    body = scramble(MultiAgentBody(2, 5, hidden=(4,), out_dim=3, input_norm=False))
    x = torch.randn(6, 2, 5)
    for i in range(2):
        expected = own_network(body, i, x[:, i], input_norm=False, n_hidden=1, last=True)
        torch.testing.assert_close(body(x)[:, i], expected, rtol=1e-4, atol=1e-5)


@ACTORS
@SHARED
def test_state_dict_round_trip(cls, share_params):
    one, other = (scramble(cls(3, 6, 4, share_params=share_params)) for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    x = torch.randn(5, 3, 6)
    assert not torch.equal(one(x)[0], other(x)[0])
    other.load_state_dict(one.state_dict())
    for a, b in zip(one(x), other(x), strict=True):
        assert torch.equal(a, b)


def test_order_of_layers_is_the_authors():
    net = MultiAgentBody(2, 5, hidden=(4, 3), out_dim=2).get_stateful_net()
    kinds = [nn.LayerNorm, *[nn.Linear, nn.ReLU, nn.LayerNorm] * 2, nn.Linear]
    assert [type(layer) for layer in net] == kinds


@ACTORS
@pytest.mark.parametrize("shape", [(5, 3, 7), (5, 2, 6), (6,), (3, 6, 1)])
def test_observation_of_the_wrong_shape(cls, shape):
    with pytest.raises(ValueError, match=r"\[\*B, 3, 6\], got \(" + str(shape[0])):
        cls(3, 6, 4)(torch.zeros(shape))


@ACTORS
def test_construction_errors(cls):
    with pytest.raises(ValueError, match="`n_agents` >= 1, got 0"):
        cls(0, 6, 4)
    with pytest.raises(ValueError, match="`in_dim` >= 1, got 0"):
        cls(2, 0, 4)
    with pytest.raises(ValueError, match="at least one hidden width"):
        cls(2, 6, 4, hidden=())
    with pytest.raises(ValueError, match=r"\[\*B, 2, 5\], got \(4, 2, 6\)"):
        MultiAgentBody(2, 5)(torch.zeros(4, 2, 6))
