"""MixerBlock against a plain transcription of Eq. 5."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_agentmixer.modules import MixerBlock

from .eq_5 import eq_5, scramble

BATCHES = pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 1, 4)])


@BATCHES
@pytest.mark.parametrize("n_agents", [1, 3, 50])
def test_mixer_block_is_eq_5(batch, n_agents):
    block = scramble(MixerBlock(n_agents, channels=8))
    tokens = torch.randn(*batch, n_agents, 8, dtype=torch.float64)
    expected = eq_5(tokens, dict(block.named_parameters()))
    torch.testing.assert_close(block(tokens), expected)
    assert block(tokens).shape == tokens.shape


def test_mixer_block_hidden_widths():
    block = MixerBlock(3, 64)
    assert block.agent_mixing[0].weight.shape == (32, 3)
    assert block.channel_mixing[0].weight.shape == (256, 64)
    block = MixerBlock(3, 64, agent_hidden=5, channel_hidden=7)
    assert block.agent_mixing[3].weight.shape == (3, 5)
    assert block.channel_mixing[3].weight.shape == (64, 7)
    assert MixerBlock(2, 1)(torch.zeros(2, 1)).shape == (2, 1)


def without_agent_mixing(block):
    torch.nn.init.zeros_(block.agent_mixing[3].weight)
    torch.nn.init.zeros_(block.agent_mixing[3].bias)
    return block


CHANNELS_ONLY = without_agent_mixing(scramble(MixerBlock(5, 8)))


@settings(max_examples=25, deadline=None)
@given(permutation=st.permutations(range(5)), seed=st.integers(0, 2**31))
def test_channel_mixing_commutes_with_permutations_of_agents(permutation, seed):
    block = CHANNELS_ONLY
    torch.manual_seed(seed)
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    permuted = block(tokens[:, list(permutation)])
    torch.testing.assert_close(permuted, block(tokens)[:, list(permutation)])
    # Channel-mixing does not read other agents' tokens.
    changed = tokens.clone()
    changed[:, 1:] = torch.randn_like(tokens[:, 1:]) * 100
    torch.testing.assert_close(block(changed)[:, 0], block(tokens)[:, 0])


def test_agent_mixing_does_not_commute_and_reads_every_agent():
    block = scramble(MixerBlock(5, 8))
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    flipped = block(tokens.flip(1)).flip(1)
    assert (flipped - block(tokens)).abs().max() > 1e-2
    for j in range(5):
        # A change of one channel only, which LayerNorm does not remove.
        changed = tokens.clone()
        changed[:, j, 0] += 1.0
        difference = (block(changed) - block(tokens)).abs().amax((0, 2))
        assert (difference > 1e-9).all()


def test_agent_mixing_runs_for_each_channel_on_its_own():
    """With the norms' effect removed, channel c of agent-mixing depends on channel c only."""
    block = scramble(MixerBlock(4, 6))
    normed = torch.randn(4, 6, dtype=torch.float64)
    changed = normed.clone()
    changed[:, 2] += 1.0
    difference = (block.agent_mixing(changed.mT) - block.agent_mixing(normed.mT)).mT.abs()
    assert (difference[:, 2] > 0).all()
    assert (difference[:, [0, 1, 3, 4, 5]] == 0).all()
