"""Batched GRU against torch's, resets, and memory in TorchRL's environments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrl.collectors import Collector
from torchrl.modules import set_recurrent_mode

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.envs import RecallEnv, with_memory
from torchrl_agentmixer.modules import (
    CategoricalActor,
    GaussianActor,
    MultiAgentGRU,
    ObservationEncoder,
    RecurrentEncoder,
)

SHARED = pytest.mark.parametrize("share_params", [False, True])


def randomized(gru):
    for parameter in gru.parameters():
        nn.init.normal_(parameter, std=0.5)
    return gru


@SHARED
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_a_step_against_torch(share_params, batch):
    gru = randomized(MultiAgentGRU(3, 4, 6, share_params=share_params))
    x, memory = torch.randn(*batch, 3, 4), torch.randn(*batch, 3, 6)
    for agent in range(3):
        cell = nn.GRUCell(4, 6)
        index = 0 if share_params else agent
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).data = getattr(gru, name)[index]
        expected = cell(x[..., agent, :].reshape(-1, 4), memory[..., agent, :].reshape(-1, 6))
        got = gru(x, memory)[..., agent, :].reshape(-1, 6)
        torch.testing.assert_close(got, expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_unrolling_is_stepping_with_resets(starts):
    is_init = torch.tensor(starts).unsqueeze(-1)  # [B, 5, 1]
    gru = randomized(MultiAgentGRU(2, 3, 4))
    x, memory = torch.randn(len(starts), 5, 2, 3), torch.randn(len(starts), 2, 4)
    unrolled = gru.unroll(x, memory, is_init)
    for b, pattern in enumerate(starts):
        m = memory[b]
        for t, start in enumerate(pattern):
            m = gru(x[b, t], torch.zeros_like(m) if start else m)
            torch.testing.assert_close(unrolled[b, t], m)


def test_an_encoder_with_memory_unrolls_as_it_steps():
    """Representations depend on earlier observations of the episode, and on no earlier one."""
    torch.manual_seed(0)
    encoder = RecurrentEncoder(ObservationEncoder(2, 3, width=4))
    x, memory = torch.randn(6, 5, 2, 3), torch.randn(6, 2, 4)
    is_init = torch.zeros(6, 5, 1, dtype=torch.bool)
    is_init[:3, 2] = True
    representation, memories = encoder(x, memory, is_init, unroll=True)
    m = memory
    for t in range(5):
        stepped, m = encoder(x[:, t], m, is_init[:, t])
        torch.testing.assert_close(stepped, representation[:, t])
        torch.testing.assert_close(m, memories[:, t])
    x[:, 1] += 1.0
    same = (encoder(x, memory, is_init, unroll=True)[0] == representation).flatten(2).all(-1)
    assert same[:3, 2:].all()
    assert not same[3:, 1:].any()


@SHARED
def test_every_gate_is_orthogonal(share_params):
    weight = MultiAgentGRU(3, 6, 6, share_params=share_params).weight_hh
    assert weight.shape[0] == (1 if share_params else 3)
    for gate in weight.unflatten(1, (3, 6)).flatten(0, 1):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match=r"expected `\w+` >= 1, got 0"):
        MultiAgentGRU(*sizes)


def test_shapes_are_checked():
    gru = MultiAgentGRU(2, 3, 4)
    good = torch.zeros(5, 2, 4)
    with pytest.raises(ValueError, match=r"got \(5, 2, 2\) and"):
        gru(torch.zeros(5, 2, 2), good)
    with pytest.raises(ValueError, match=r"and \(5, 3, 4\)"):
        gru(torch.zeros(5, 2, 3), torch.zeros(5, 3, 4))
    with pytest.raises(ValueError, match=r"got \(5, 7, 1, 3\)"):
        gru.unroll(torch.zeros(5, 7, 1, 3), good, torch.zeros(5, 7, 1, dtype=torch.bool))


@pytest.mark.parametrize("cls", [CategoricalActor, GaussianActor])
def test_an_actor_without_its_memory_raises(cls):
    with pytest.raises(ValueError, match=r"`memory_dim` 4: expected `memory`.* got None"):
        cls(2, 3, 5, memory_dim=4)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="`memory_dim` >= 0, got -1"):
        cls(2, 3, 5, memory_dim=-1)


@pytest.fixture
def team():
    torch.manual_seed(0)
    env = RecallEnv(num_envs=6, delay=2, seed=0)
    policy = AgentMixerPolicy.from_env(env, actor_kwargs={"memory_dim": 8})
    return with_memory(env, policy), policy


def test_an_environment_is_wrapped_once_and_only_for_memory(team):
    env, policy = team
    assert with_memory(env, policy) is env
    plain = RecallEnv(num_envs=2)
    assert with_memory(plain, AgentMixerPolicy.from_env(plain)) is plain


def test_memory_is_carried_and_starts_at_zero(team):
    env, policy = team
    data = env.rollout(12, policy, break_when_any_done=False)  # three episodes of four steps
    memory, after = data["agents", "memory"], data["next", "agents", "memory"]
    starts = data["is_init"].squeeze(-1)
    assert starts[0].tolist() == ([True] + [False] * 3) * 3
    assert (memory[starts] == 0).all()
    assert (memory[~starts] != 0).any(-1).all()
    torch.testing.assert_close(memory[:, 1:4], after[:, :3])


@pytest.mark.parametrize("length", [1, 3, 6, 12])
def test_sequences_give_what_was_collected(team, length):
    """Sequences from stored memories, across episodes, give the log-probabilities of collection."""
    env, policy = team
    data = env.rollout(12, policy, break_when_any_done=False)
    chunks = data.reshape(-1, length)
    with set_recurrent_mode(True):
        log_prob = policy.get_dist(chunks.copy()).log_prob(chunks["agents", "action"])
    torch.testing.assert_close(log_prob, chunks["action_log_prob"])


def test_a_collector_carries_memory_over_batches(team):
    env, policy = team
    collector = Collector(env, policy, frames_per_batch=18, total_frames=72)
    batches = [batch.clone() for batch in collector]  # three steps each; episodes have four
    collector.shutdown()
    data = torch.cat(batches, 1)
    starts = data["is_init"].squeeze(-1)
    memory, after = data["agents", "memory"], data["next", "agents", "memory"]
    carried = ~starts[:, 1:]
    torch.testing.assert_close(memory[:, 1:][carried], after[:, :-1][carried])


def test_execution_remembers_without_the_others(team):
    env, policy = team
    actors = policy.decentralized()
    data = env.rollout(4, actors)
    twin = data.clone()
    twin["agents", "observation"][..., 1, :] = torch.randn(6, 4, 5)
    with set_recurrent_mode(True):
        actors(twin)
    assert torch.equal(twin["agents", "action"][..., 0], data["agents", "action"][..., 0])


def test_compiled_without_graph_breaks(team):
    env, policy = team
    actors = policy.decentralized()
    torch.compiler.reset()
    compiled = torch.compile(actors, fullgraph=True, backend="aot_eager")
    start = env.reset()
    sequences = env.rollout(6, policy, break_when_any_done=False).reshape(-1, 3)
    for data, recurrent in ((start, False), (sequences, True)):
        with set_recurrent_mode(recurrent):
            expected, got = actors(data.copy()), compiled(data.copy())
        assert torch.equal(got["agents", "action"], expected["agents", "action"])
        memory = ("next", "agents", "memory")
        torch.testing.assert_close(got[memory], expected[memory])
    torch.compiler.reset()
