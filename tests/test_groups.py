"""Sizes and action spaces from specs, and refusals of what no method can train on."""

from __future__ import annotations

import pytest
import torch
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    Unbounded,
)
from torchrl.envs import ParallelEnv, SerialEnv, TransformedEnv

from tests.envs.any_env import AnyEnv
from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.algorithms import available_algorithms, make_algorithm
from torchrl_agentmixer.envs import make_env, normalize_observations
from torchrl_agentmixer.groups import agent_groups, check_team, state_dim

ONE_HOT = {"agents": OneHot(4, shape=(2, 4))}
REFUSED_ACTIONS = {
    "binary": (Binary(3, shape=(2, 3), dtype=torch.int8), r"got Binary \[\*B, 2, 3\]"),
    "binary per agent": (Binary(1, shape=(2, 1)), "got Binary"),
    "several choices": (Categorical(3, shape=(2, 4)), r"\[\*B, n_agents\], got Categorical"),
    "an entry of one choice": (Categorical(3, shape=(2, 1)), r"\[\*B, n_agents\], got"),
    "multi-discrete": (MultiCategorical([3, 2], shape=(2, 2)), "got MultiCategorical"),
    "one-hot": (OneHot(4, shape=(2, 4)), "categorical_actions=True"),
    "multi-one-hot": (MultiOneHot([3, 2], shape=(2, 5)), "categorical_actions=True"),
    "one number per agent": (Bounded(-1.0, 1.0, (2,)), r"\[\*B, n_agents, A\], got"),
    "a matrix per agent": (Bounded(-1.0, 1.0, (2, 3, 3)), r"\[\*B, n_agents, A\], got"),
    "integers": (Bounded(0, 4, (2, 1), dtype=torch.int64), "dtype torch.int64"),
}


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", REFUSED_ACTIONS)
def test_actions_that_are_not_one_choice_or_a_vector_per_agent(kind, batch):
    action, message = REFUSED_ACTIONS[kind]
    with pytest.raises(ValueError, match=rf"\('agents', 'action'\): expected .*{message}"):
        agent_groups(AnyEnv(action, batch=batch))


def test_one_bit_per_agent():
    """TorchRL itself cannot index such specs with a batch size."""
    with pytest.raises(ValueError, match="got Binary"):
        agent_groups(AnyEnv(Binary(2, shape=(2,))))


def test_multidiscrete_actions_of_vmas():
    vmas = pytest.importorskip("torchrl.envs.libs.vmas")
    options = {"continuous_actions": False, "multidiscrete_actions": True}
    with pytest.raises(ValueError, match=r"MultiCategorical.*team_env\(env\)` makes one action"):
        AgentMixerPolicy.from_env(vmas.VmasEnv("navigation", num_envs=2, **options))


def stacked(leaf, specs):
    return torch.stack([Composite({leaf: spec}) for spec in specs], 0)[leaf]


def test_one_group_of_agents_with_different_numbers_of_actions():
    """Such a stack of specs has dtype float32, and once read as continuous."""
    actions = stacked("action", [Categorical(n) for n in (3, 4, 5)])
    env = AnyEnv(Categorical(3, shape=(3,)), Unbounded((3, 5)))
    env.full_action_spec_unbatched = Composite(agents=Composite(action=actions, shape=(3,)))
    with pytest.raises(ValueError, match=r"same actions for all agents.*ONE_GROUP_PER_AGENT"):
        agent_groups(env)


def test_one_group_of_agents_with_different_observations():
    observations = stacked("observation", [Unbounded((n,)) for n in (3, 4)])
    env = AnyEnv()
    spec = Composite(agents=Composite(observation=observations, shape=(2,)))
    env.full_observation_spec_unbatched = spec
    with pytest.raises(ValueError, match=r"entries of one size.*ONE_GROUP_PER_AGENT"):
        agent_groups(env)


REFUSED_OBSERVATIONS = {
    "matrix": (Unbounded((2, 5, 5)), r"\[\*B, n_agents, C, H, W\], got .*FlattenObservation"),
    "8-bit image": (Bounded(0, 255, (2, 3, 8, 8), dtype=torch.uint8), "uint8: use .*team_env"),
    "channels last": (Unbounded((2, 8, 8, 3)), r"got \[\*B, 2, 8, 8, 3\]: use .*ToTensorImage"),
    "one number": (Unbounded((2,)), r"got \[\*B, 2\]"),
    "float64": (Unbounded((2, 5), dtype=torch.float64), "float64.*team_env.*DoubleToFloat"),
    "int64": (Unbounded((2, 5), dtype=torch.int64), "int64.*team_env.*DTypeCastTransform"),
    "other number of agents": (Unbounded((3, 5)), "observations of 2 agents"),
}


@pytest.mark.parametrize("batch", [(), (4,)], ids=str)
@pytest.mark.parametrize("kind", REFUSED_OBSERVATIONS)
def test_observations_that_are_not_one_float32_vector_per_agent(kind, batch):
    observation, message = REFUSED_OBSERVATIONS[kind]
    with pytest.raises(ValueError, match=rf"\('agents', 'observation'\): expected .*{message}"):
        agent_groups(AnyEnv(observation=observation, batch=batch))


@pytest.mark.parametrize("batch", [(), (4,)], ids=str)
def test_images(batch):
    (group,) = agent_groups(AnyEnv(observation=Unbounded((2, 3, 8, 9)), batch=batch))
    assert (group.image_shape, group.observation_shape) == ((3, 8, 9), (3, 8, 9))
    assert group.observation_dim == 3 * 8 * 9


def test_nested_observations():
    observation = Composite(vector=Unbounded((2, 5)), shape=(2,))
    with pytest.raises(KeyError, match="observation_key"):
        agent_groups(AnyEnv(observation=observation))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (Unbounded((7, 7)), r"'state': expected \[\*B, s\], got \[\*B, 7, 7\]"),
        (Unbounded((7,), dtype=torch.float64), "'state': expected float32, got torch.float64"),
    ],
)
def test_states_that_are_not_one_float32_vector(state, message):
    with pytest.raises(ValueError, match=message):
        state_dim(AnyEnv(state=state, batch=(4,)))


def test_no_state():
    with pytest.raises(KeyError, match=r"no entry 'state'.*team_env\(env\)"):
        state_dim(AnyEnv())


@pytest.mark.parametrize("name", available_algorithms())
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"expected 'reward' .* of the whole team"),
        ({"rewards": "none"}, r"expected 'reward' .* of the whole team"),
        ({"rewards": "team", "dones": "both"}, r"expected 'done' .* of the whole team"),
        ({"rewards": "team", "dones": "group"}, r"expected 'done' .* of the whole team"),
    ],
    ids=["agents' rewards", "no reward", "done flags at both places", "agents' done flags"],
)
def test_no_team_reward_or_done_flags(name, options, message):
    discrete = Categorical(3, shape=(2,))
    for action in (None, discrete):
        env = AnyEnv(action, state=Unbounded((7,)), batch=(4,), **options)
        with pytest.raises(ValueError, match=rf"{message}.*team_env\(env\)|available_algorithms"):
            make_algorithm(name, env, 100)
    with pytest.raises(ValueError, match=message):
        check_team(env)


def test_no_groups():
    env = AnyEnv()
    env.full_action_spec_unbatched = Composite(action=Categorical(3, shape=()))
    with pytest.raises(ValueError, match=r"\(group, 'action'\), got the key 'action'"):
        agent_groups(env)


def test_names_of_entries_that_torchrl_writes():
    name = "collector"
    with pytest.raises(ValueError, match=r"other names than \['collector', 'next'\].*group_map"):
        agent_groups(AnyEnv({name: Categorical(3, shape=(2,))}, {name: Unbounded((2, 5))}))


def grid():
    return make_env("grid/predator_prey", num_envs=2, seed=0)


@pytest.mark.parametrize("cls", [SerialEnv, ParallelEnv])
def test_batches_of_workers(cls):
    """Workers answer `group_map` each, and some only once started; the specs are those of all."""
    expected = agent_groups(grid())
    options = {} if cls is SerialEnv else {"mp_start_method": "fork"}  # spawned ones import torch
    env = cls(2, grid, **options)
    try:
        for _ in range(2):
            assert agent_groups(env) == expected
            assert agent_groups(TransformedEnv(env)) == expected
            assert state_dim(env) == state_dim(grid())
            env.reset()
        env = normalize_observations(env)
        rollout = env.rollout(2, AgentMixerPolicy.from_env(env))
        assert rollout["action_log_prob"].shape == (2, 2, 2)
    finally:
        env.close()
