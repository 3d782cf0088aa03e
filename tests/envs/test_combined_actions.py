"""Several discrete actions per agent as one, against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrl.data import Binary, Categorical, MultiCategorical, Unbounded
from torchrl.envs import RewardSum, TransformedEnv, check_env_specs
from torchrl.envs.utils import ExplorationType, set_exploration_type

from tests.envs.any_env import AnyEnv
from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.envs import make_env, team_env
from torchrl_agentmixer.envs.combined_actions import (
    combinations,
    combine_actions,
    combined_mask,
    option_places,
)

ACTIONS = {
    "MultiCategorical": (MultiCategorical([3, 2], shape=(2, 2)), [3, 2]),
    "Categorical": (Categorical(3, shape=(2, 2)), [3, 3]),
    "Categorical of one entry": (Categorical(3, shape=(2, 1)), [3]),
    "Binary": (Binary(3, shape=(2, 3), dtype=torch.int8), [2, 2, 2]),
}
OPTIONS = st.lists(st.integers(1, 4), min_size=1, max_size=4)


class Recorder(AnyEnv):
    """Observes the last action, and optionally a mask of all options."""

    def __init__(self, action, batch=(), mask=None):
        super().__init__(action, Unbounded(action.shape), batch=batch)
        self.mask = mask
        if mask is not None:
            flags = Categorical(2, shape=mask.shape, dtype=torch.bool)
            spec = self.observation_spec
            spec["agents", "action_mask"] = flags.expand(*batch, *mask.shape)
            self.observation_spec = spec

    def _reset(self, tensordict=None, **kwargs):
        result = super()._reset()
        if self.mask is not None:
            result["agents", "action_mask"] = self.mask.expand(*self.batch_size, *self.mask.shape)
        return result

    def _step(self, tensordict):
        action = tensordict["agents", "action"]
        assert self.full_action_spec["agents", "action"].is_in(action)
        result = super()._step(tensordict)
        result["agents", "observation"] = action.float()
        return result


def index(choice, options):
    """The place of a choice in the order of ``itertools.product``."""
    return list(itertools.product(*map(range, options))).index(tuple(choice))


@given(OPTIONS)
def test_combinations(options):
    expected = list(itertools.product(*map(range, options)))
    assert [tuple(row) for row in combinations(options).tolist()] == expected


@given(OPTIONS, st.data())
def test_masks(options, data):
    flags = data.draw(st.lists(st.booleans(), min_size=sum(options), max_size=sum(options)))
    split = torch.tensor(flags).split(options)
    expected = [
        all(bool(own[i]) for own, i in zip(split, choice, strict=True))
        for choice in itertools.product(*map(range, options))
    ]
    assert combined_mask(torch.tensor(flags), option_places(options)).tolist() == expected


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", ACTIONS)
def test_the_environment_gets_the_choices(kind, batch):
    action, options = ACTIONS[kind]
    env = team_env(Recorder(action, batch))
    spec = env.action_spec_unbatched["agents", "action"]
    assert type(spec) is Categorical
    assert (spec.n, spec.shape) == (math.prod(options), (2,))
    check_env_specs(env)
    rollout = env.rollout(20)
    taken = rollout["next", "agents", "observation"].flatten(0, -2).long().tolist()
    combined = rollout["agents", "action"].flatten().tolist()
    assert combined == [index(choice, options) for choice in taken]
    assert len(set(combined)) > 1


def test_masked_options_are_not_taken():
    mask = torch.tensor([[True, False, True, True, False], [False, True, True, True, True]])
    env = team_env(Recorder(MultiCategorical([3, 2], shape=(2, 2)), (50,), mask))
    policy = AgentMixerPolicy.from_env(env)
    for rollout in (env.rollout(3), env.rollout(3, policy)):
        choices = rollout["next", "agents", "observation"].long()
        for agent, own in enumerate(mask):
            first, second = choices[:, :, agent].unbind(-1)
            assert own[first].all()
            assert own[3 + second].all()


def test_probabilities_and_mode_of_the_joint_policy():
    """Of all joint actions of two agents with 3 x 2 choices each."""
    torch.manual_seed(0)
    env = team_env(Recorder(MultiCategorical([3, 2], shape=(2, 2)), (5,)))
    policy = AgentMixerPolicy.from_env(env, modified_share=0.7)
    data = env.reset()
    dist = policy.get_dist(data)
    actions = torch.tensor(list(itertools.product(range(6), repeat=2)))  # [36, 2]
    log_probs = torch.stack([dist.log_prob(action.expand(5, 2)) for action in actions])
    assert torch.allclose(log_probs.logsumexp(0), torch.zeros(5), atol=1e-5)
    assert torch.equal(actions[log_probs.argmax(0)], dist.mode)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert torch.equal(policy(data)["agents", "action"], dist.mode)


def test_one_categorical_action_stays():
    env = AnyEnv(Categorical(3, shape=(2,)))
    assert combine_actions(env) is env


@pytest.mark.parametrize(
    ("action", "mask", "message"),
    [
        (
            MultiCategorical([[3, 2], [3, 4]]),
            None,
            r"same choices for all agents of a group, got \[\[3, 2\], \[3, 4\]\] options",
        ),
        (Categorical(11, shape=(2, 3)), None, r"at most 1024 .* got choices of \[11, 11, 11\]"),
        (
            Categorical(3, shape=(2, 2)),
            torch.ones(2, 3).bool(),
            r"n_agents, 6\].*got \[\*B, 2, 3\]",
        ),
        (Categorical(3, shape=(2, 2)), torch.ones(2, 2, 3).bool(), r"got \[\*B, 2, 2, 3\]"),
    ],
    ids=["different agents", "many combinations", "mask of one choice", "mask of three dimensions"],
)
def test_refused(action, mask, message):
    with pytest.raises(ValueError, match=message):
        team_env(Recorder(action, mask=mask))


def test_vmas_by_name():
    pytest.importorskip("vmas")
    options = {"continuous_actions": False, "multidiscrete_actions": True}
    env = make_env("vmas/simple_reference", num_envs=3, seed=0, **options)
    assert env.action_spec_unbatched["agents", "action"].n == 3 * 3 * 10
    check_env_specs(env)
    assert env.render().ndim == 3


def test_random_actions_of_a_transformed_environment():
    """TransformedEnv once asked its base environment, whose batch size is another one."""
    env = team_env(TransformedEnv(AnyEnv(), RewardSum(in_keys=[("agents", "reward")])))
    assert env.rollout(3)["agents", "action"].shape == (1, 3, 2, 3)
