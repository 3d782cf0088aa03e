"""One-shot games of continuous actions against their formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_agentmixer.envs import (
    ContinuousGameEnv,
    SmoothMatrixGame,
    make_env,
    penalty,
    stag_hunt,
    two_quadratics,
)

unit = st.floats(-1, 1, width=32)


@settings(max_examples=50, deadline=None)
@given(places=st.lists(st.lists(unit, min_size=2, max_size=2), min_size=1, max_size=3))
def test_two_quadratics(places):
    x = [10 * value for agent in places for value in agent]
    local = -0.8 * sum(((v + 5) / 3) ** 2 for v in x)
    expected = max(local, 10 - sum((v - 5) ** 2 for v in x))
    actual = two_quadratics(torch.tensor([places])).item()
    assert actual == pytest.approx(expected, rel=1e-4, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    places=st.lists(unit, min_size=3, max_size=3),
    width=st.floats(0.1, 1),
)
def test_smooth_game_against_the_sum_over_joint_actions(shape, places, width):
    payoff = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for joint in itertools.product(*(range(k) for k in shape)):
        weight = 1.0
        for place, k, count in zip(places, joint, shape, strict=False):
            z = (place - (-1 + (2 * k + 1) / count)) / (width * 2 / count)
            weight *= math.exp(-(z**2) / 2)
        expected += weight * payoff[joint].item()
    actions = torch.tensor(places[: len(shape)])[None, :, None]
    game = SmoothMatrixGame(payoff, width=width)
    assert game(actions).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "payoff"), [("continuous/penalty", penalty()), ("continuous/stag_hunt", stag_hunt())]
)
def test_the_payoffs_at_the_places_are_those_of_the_matrix_game(name, payoff):
    joint = list(itertools.product(*(range(k) for k in payoff.shape)))
    env = make_env(name, num_envs=len(joint))
    action = -1 + (2 * torch.tensor(joint).float().unsqueeze(-1) + 1) / payoff.shape[0]
    group = TensorDict({"action": action}, batch_size=action.shape[:2])
    paid = env.step(env.reset().update({"agents": group}))["next", "reward"].squeeze(-1)
    assert torch.allclose(paid, payoff.flatten(), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_agents": 0}, "`n_agents` >= 1, got 0"),
        ({"action_dim": 0}, "`action_dim` >= 1, got 0"),
        ({"payoff": lambda actions: actions.sum(-1)}, r"return \[1\] .*got shape \(1, 2\)"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ContinuousGameEnv(**{"payoff": two_quadratics, **options})


def test_a_smooth_game_for_another_number_of_agents():
    with pytest.raises(ValueError, match="2 agents, got actions of 3"):
        ContinuousGameEnv(SmoothMatrixGame(penalty()), n_agents=3)
