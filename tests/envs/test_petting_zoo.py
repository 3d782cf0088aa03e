"""PettingZoo's parallel tasks by name."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import PettingZooWrapper
from torchrl.envs.utils import check_env_specs

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.algorithms import make_algorithm
from torchrl_agentmixer.envs import available_envs, make_env, team_env
from torchrl_agentmixer.envs.petting_zoo import petting_zoo_tasks
from torchrl_agentmixer.groups import agent_groups, check_team, state_dim
from torchrl_agentmixer.training.evaluation import can_render

pytest.importorskip("mpe2")

TASKS = {
    "simple_spread_v3": ({}, {"agent": (3, 18, 5)}),
    "simple_reference_v3": ({"continuous_actions": True}, {"agent": (2, 21, 15)}),
    "simple_speaker_listener_v4": (
        {"reward": "mean"},
        {"speaker": (1, 3, 3), "listener": (1, 11, 5)},
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_tasks(task):
    options, expected = TASKS[task]
    env = make_env(f"pettingzoo/{task}", num_envs=3, seed=0, max_cycles=4, **options)
    check_env_specs(env)
    check_team(env)
    groups = {g.name: (g.n_agents, g.observation_dim, g.action_dim) for g in agent_groups(env)}
    assert groups == expected
    assert state_dim(env) == sum(n * o for n, o, _ in groups.values())
    assert env.device == torch.device("cpu")
    after = env.rollout(9, break_when_any_done=False)["next"]
    truncated = after["truncated"].squeeze(-1)
    assert truncated[0].tolist() == [t in (3, 7) for t in range(9)]
    assert torch.equal(after["done"].squeeze(-1), truncated)
    assert not after["terminated"].any()


def test_same_seed_same_trajectories():
    def states(seed):
        env = make_env("pettingzoo/simple_spread_v3", num_envs=2, seed=seed)
        torch.manual_seed(0)
        return env.rollout(4)["state"]

    assert torch.equal(states(1), states(1))
    assert not torch.equal(states(1), states(2))
    assert not torch.equal(*states(1)[:, 0])  # environments of a batch differ


def test_observations_and_rewards_are_those_of_pettingzoo():
    env = make_env("pettingzoo/simple_spread_v3", num_envs=1, seed=5)
    raw = import_module("mpe2.simple_spread_v3").parallel_env()
    raw.reset(seed=5)
    data, (observations, _) = env.reset(), raw.reset()
    for _ in range(3):
        for index, agent in enumerate(raw.agents):
            torch.testing.assert_close(
                data["agent", "observation"][0, index], torch.as_tensor(observations[agent])
            )
        action = torch.randint(5, (1, 3))
        data = env.step(data.set(("agent", "action"), action))["next"]
        actions = dict(zip(raw.agents, action[0].tolist(), strict=True))
        observations, rewards, *_ = raw.step(actions)
        assert data["reward"].item() == pytest.approx(sum(rewards.values()) / 3, rel=1e-5)


@pytest.mark.parametrize("task", ["simple_tag_v3", "simple_adversary_v3", "simple_push_v3"])
def test_opponents_need_a_choice(task):
    with pytest.raises(ValueError, match="may be opponents"):
        make_env(f"pettingzoo/{task}", num_envs=2)


def test_errors():
    assert "pettingzoo/simple_spread_v3" in available_envs()
    with pytest.raises(ValueError, match=r"'max_cycle'; did you mean 'max_cycles'"):
        make_env("pettingzoo/simple_spread_v3", max_cycle=3)
    with pytest.raises(ValueError, match=r"did you mean 'pettingzoo/simple_spread_v3'"):
        make_env("pettingzoo/simple_spred_v3")
    with pytest.raises(ValueError, match="`num_envs` >= 1, got 0"):
        make_env("pettingzoo/simple_spread_v3", num_envs=0)


@pytest.mark.parametrize(
    ("task", "shapes"),
    [
        ("pursuit_v5", {"pursuer": (3, 7, 7)}),  # images, channels last
        ("knights_archers_zombies_v11", {"archer": (135,), "knight": (135,)}),  # matrices 27 x 5
        ("collect_treasure_v1", {"collectors": (86,), "deposit": (84,)}),  # a reserved name
    ],
)
def test_layouts_and_names_that_methods_read(task, shapes):
    env = make_env(f"pettingzoo/{task}", num_envs=2, seed=0, reward="mean")
    assert {group.name: group.observation_shape for group in agent_groups(env)} == shapes
    policy = make_algorithm("mappo", env, 100).policy
    batch = next(iter(Collector(env, policy, frames_per_batch=4, total_frames=-1)))
    raw = import_module(petting_zoo_tasks()[task]).parallel_env()
    for name, shape in shapes.items():
        agents = [agent for agent in raw.possible_agents if agent.startswith(name.rstrip("s"))]
        assert batch[name, "observation"].shape == (2, 2, len(agents), *shape)
        assert math.prod(raw.observation_space(agents[0]).shape) == math.prod(shape)


def test_images_are_those_of_the_task():
    env = make_env("pettingzoo/pursuit_v5", num_envs=1, seed=5)
    raw = import_module("pettingzoo.sisl.pursuit_v5").parallel_env()
    raw.reset(seed=5)
    data, (observations, _) = env.reset(), raw.reset()
    images = [torch.as_tensor(observations[agent]).movedim(-1, 0) for agent in raw.agents]
    torch.testing.assert_close(data["pursuer", "observation"][0], torch.stack(images))


def test_batches_of_workers_are_not_rendered():
    assert not can_render(make_env("pettingzoo/simple_spread_v3", num_envs=2))


def test_turn_based_tasks():
    """TorchRL's mask says whose turn it is; the others have one action."""
    task = import_module("mpe2.simple_spread_v3").env(max_cycles=2)
    group = {"agents": [f"agent_{i}" for i in range(3)]}
    env = team_env(PettingZooWrapper(task, use_mask=True, group_map=group))
    check_env_specs(env)
    policy = AgentMixerPolicy.from_env(env)
    rollout = env.rollout(6, policy)
    turns = [[t % 3 == i for i in range(3)] for t in range(6)]
    assert rollout["agents", "mask"][0].tolist() == turns
    assert (rollout["agents", "action"][~rollout["agents", "mask"]] == 0).all()
    assert rollout["next", "done"][0, :, 0].tolist() == [False] * 5 + [True]
