"""Recall environment."""

from __future__ import annotations

import itertools

import pytest
import torch

from torchrl_agentmixer.envs import RecallEnv


@pytest.mark.parametrize("delay", [0, 3])
def test_reward_of_every_joint_action(delay):
    """The reward is 1 at the flag if both actions are the cue, otherwise 0."""
    for answer in itertools.product(range(3), repeat=2):
        env = RecallEnv(num_envs=50, n_cues=3, delay=delay, seed=1)
        data = env.reset()
        cue = data["agents", "observation"][:, 0, :3].argmax(-1)
        for step in range(delay + 2):
            seen = data["agents", "observation"]
            flag = float(step == delay + 1)
            assert (seen[..., 3] == flag).all()
            assert (seen[..., :3].sum(-1) == (step == 0)).all()
            assert torch.equal(data["state"][:, :3].argmax(-1), cue)
            data["agents", "action"] = torch.tensor(answer).expand(50, 2)
            data = env.step(data)["next"]
            right = (cue == answer[0]) & (cue == answer[1])
            assert torch.equal(data["reward"][:, 0], right.float() * flag)
            assert (data["terminated"] == bool(flag)).all()
            assert not data["truncated"].any()


def test_cues_are_uniform():
    cues = RecallEnv(num_envs=4000, n_cues=4, seed=0).reset()["state"][:, :4].sum(0)
    assert cues.min() > 850


@pytest.mark.parametrize(
    ("option", "value", "least"), [("n_agents", 0, 1), ("n_cues", 1, 2), ("delay", -1, 0)]
)
def test_options_out_of_range(option, value, least):
    with pytest.raises(ValueError, match=f"`{option}` >= {least}, got {value}"):
        RecallEnv(**{option: value})
