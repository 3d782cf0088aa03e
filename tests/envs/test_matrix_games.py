"""One-shot games against their payoff tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_agentmixer.envs import (
    MatrixGameEnv,
    climbing,
    make_env,
    penalty,
    stag_hunt,
)


def _played(env: MatrixGameEnv, actions: torch.Tensor) -> torch.Tensor:
    group = TensorDict({"action": actions}, batch_size=actions.shape)
    return env.step(env.reset().update({"agents": group}))["next", "reward"][:, 0]


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_reward_of_every_joint_action(shape, seed):
    payoff = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    joint = list(itertools.product(*(range(k) for k in shape)))
    env = MatrixGameEnv(payoff, num_envs=len(joint))
    expected = torch.tensor([payoff[a].item() for a in joint])
    assert torch.equal(_played(env, torch.tensor(joint)), expected)


def test_the_papers_payoffs():
    assert climbing().tolist() == [[0, 6, 5], [-30, 7, 0], [11, -30, 0]]
    assert penalty(-50).tolist() == [[-50, 0, 10], [0, 2, 0], [10, 0, -50]]
    assert torch.equal(make_env("matrix/climbing").payoff, climbing())
    assert torch.equal(make_env("matrix/penalty", k=-7).payoff, penalty(-7))


# The two payoffs of each joint action, Kapetanakis and Kudenko 2002, in the order of `climbing()`.
PAID = {
    "partial": [
        [(0, 0), (6, 6), (5, 5)],
        [(-30, -30), (0, 14), (0, 0)],
        [(11, 11), (-30, -30), (0, 0)],
    ],
    "full": [
        [(-8, 8), (0, 12), (0, 10)],
        [(-65, 5), (0, 14), (-5, 5)],
        [(10, 12), (-65, 5), (-5, 5)],
    ],
    # This package's own: a spread of 20 where both take b or c.
    "noisy": [
        [(0, 0), (6, 6), (5, 5)],
        [(-30, -30), (-13, 27), (-20, 20)],
        [(11, 11), (-50, -10), (-20, 20)],
    ],
}


@pytest.mark.parametrize("kind", list(PAID))
def test_stochastic_climbing_pays_either_payoff_equally_often(kind):
    env = make_env("matrix/climbing", stochastic=kind, num_envs=9 * 2000, seed=0)
    joint = torch.cartesian_prod(torch.arange(3), torch.arange(3)).repeat_interleave(2000, 0)
    paid = _played(env, joint).reshape(9, 2000)
    for rewards, (low, high) in zip(paid, itertools.chain(*PAID[kind]), strict=True):
        assert set(rewards.tolist()) == {low, high}
        # 5 standard errors of a fair coin: fails by chance once in 10^6.
        assert low == high or abs((rewards == high).float().mean() - 0.5) < 5 * 0.5 / 2000**0.5


def test_a_spread_draws_from_the_environments_own_generator():
    first, second = (make_env("matrix/penalty", spread=3.0, num_envs=64, seed=1) for _ in "ab")
    action = torch.zeros(64, 2, dtype=torch.int64)
    paid = _played(first, action)
    torch.manual_seed(0)
    assert torch.equal(paid, _played(second, action))
    assert set(paid.tolist()) == {-28.0, -22.0}
    assert not torch.equal(paid, _played(first, action))


def test_stag_hunt_by_hand():
    payoff = stag_hunt(4)
    assert torch.equal(make_env("matrix/stag_hunt").payoff, payoff)
    for joint in itertools.product((0, 1), repeat=4):
        hunters = joint.count(0)
        expected = 10 if hunters == 4 else (4 - hunters) - 5 * hunters
        assert payoff[joint] == expected


def test_agents_with_different_numbers_of_actions_get_a_mask():
    env = MatrixGameEnv(torch.zeros(2, 4, 3), num_envs=50)
    mask = env.reset()["agents", "action_mask"]
    assert mask.dtype == torch.bool
    assert mask[0].tolist() == [[True] * 2 + [False] * 2, [True] * 4, [True] * 3 + [False]]
    drawn = env.rollout(1)["agents", "action"]
    assert (drawn[:, 0].amax(0) == torch.tensor([1, 3, 2])).all()  # random actions are valid


def test_agents_with_equal_numbers_of_actions_get_none():
    assert ("agents", "action_mask") not in MatrixGameEnv(climbing()).reset().keys(True)


@pytest.mark.parametrize(
    ("payoff", "message"),
    [
        (torch.tensor(1.0), r"got shape \(\)"),
        (torch.zeros(2, 0), r"got shape \(2, 0\)"),
        (torch.tensor([1.0, float("nan")]), "finite `payoff`, got nan"),
        (torch.tensor([[1.0, float("inf")]]), "finite `payoff`, got inf"),
    ],
)
def test_bad_payoffs(payoff, message):
    with pytest.raises(ValueError, match=message):
        MatrixGameEnv(payoff)


@pytest.mark.parametrize(
    ("spread", "message"),
    [
        (torch.zeros(3), r"shape of `payoff`, \(3, 3\), got shape \(3,\)"),
        (float("nan"), "finite `spread`, got nan"),
    ],
)
def test_bad_spreads(spread, message):
    with pytest.raises(ValueError, match=message):
        MatrixGameEnv(climbing(), spread=spread)


def test_an_unknown_stochastic_climbing_game():
    with pytest.raises(ValueError, match="'ful'; did you mean 'full'"):
        make_env("matrix/climbing", stochastic="ful")
