"""Replay keeps the newest transitions, and resumes exactly from its state."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_agentmixer.algorithms.replay import TransitionReplay


def transitions(start, stop):
    """Numbered transitions, with a nested entry of another batch size."""
    number = torch.arange(start, stop).float()
    agents = TensorDict({"observation": number[:, None, None].expand(-1, 2, 3)}, [len(number), 2])
    return TensorDict({"state": number[:, None], "agents": agents}, [len(number)])


def held(replay):
    """Numbers of all transitions in the buffer."""
    sample = replay.sample(2_000)
    assert torch.equal(sample["agents", "observation"][:, 1, 2], sample["state"][:, 0])
    return sorted(set(sample["state"][:, 0].tolist()))


def filled(size, batches):
    replay = TransitionReplay(size)
    for start, stop in batches:
        replay.extend(transitions(start, stop))
    return replay


BATCHES = [(0, 6), (6, 12), (12, 18), (18, 24)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_newest_are_drawn(count):
    replay = filled(10, BATCHES[:count])
    expected = list(range(6 * count))[-10:]
    assert held(replay) == expected
    assert len(replay) == len(expected)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_restored_one_goes_on_alike(count):
    """Before and after the buffer is full, and with the writer in the middle."""
    original = filled(10, BATCHES[:count])
    restored = filled(10, [(100, 107)])  # replaced by the loaded state
    restored.load_state_dict(original.state_dict())
    assert len(restored) == len(original)
    for start, stop in BATCHES[count:]:
        samples = []
        for replay in (original, restored):
            replay.extend(transitions(start, stop))
            torch.manual_seed(start)
            samples.append(replay.sample(50))
        assert (samples[0] == samples[1]).all()
    assert held(restored) == list(range(14, 24))
