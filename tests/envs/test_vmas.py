"""VMAS scenarios as team environments."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vmas")

import vmas
from tensordict import TensorDict

from torchrl_agentmixer.envs import VmasTeamEnv, make_env


def _follow(env: VmasTeamEnv, steps: int):
    """Step ``env`` and VMAS from the same start; yield the results of both."""
    env.set_seed(0)
    data = env.reset()
    raw = vmas.make_env(env.scenario_name, num_envs=env.batch_size[0], seed=0)
    for ours, theirs in zip(env.scenario.world.entities, raw.world.entities, strict=True):
        theirs.set_pos(ours.state.pos.clone(), None)
        theirs.set_vel(ours.state.vel.clone(), None)
        theirs.set_rot(ours.state.rot.clone(), None)
    for _ in range(steps):
        action = env.full_action_spec.rand()
        data = env.step(data.update(action))["next"]
        order = [action[group, "action"].unbind(1) for group in env.group_map]
        yield data, raw.step([a for group in order for a in group])


@pytest.mark.parametrize("name", ["dispersion", "simple_tag", "simple_spread"])
def test_reward_is_the_mean_over_all_agents(name):
    env = make_env(f"vmas/{name}", num_envs=3, seed=0, reward="mean")
    for data, (observations, rewards, done, _) in _follow(env, 5):
        torch.testing.assert_close(data["reward"][:, 0], torch.stack(rewards).mean(0))
        torch.testing.assert_close(data["state"], torch.cat(observations, -1))
        assert torch.equal(data["terminated"][:, 0], done)


@pytest.mark.parametrize(
    ("name", "n_agents", "same"), [("give_way", 2, True), ("passage", 5, False)]
)
def test_rewards_in_narrow_passages(name, n_agents, same):
    """Give way: one reward for both agents; passage: one per agent, and the team gets the mean."""
    env = make_env(f"vmas/{name}", num_envs=8, seed=0)
    reward, rewards = env.scenario.reward, []

    def record(agent):
        rewards.append(reward(agent).clone())
        return rewards[-1]

    env.scenario.reward = record
    data = env.rollout(20)["next"]
    each = torch.stack(rewards).reshape(20, n_agents, 8)
    torch.testing.assert_close(data["reward"][..., 0], each.mean(1).T)
    assert torch.equal(each[:, 0], each[:, 1]) == same


def test_the_shared_random_state_is_unchanged():
    """Random numbers of one environment do not change those of VMAS."""
    shared = vmas.simulator.environment.Environment.vmas_random_state
    env = make_env("vmas/balance", num_envs=2, seed=0)
    before = shared[0].clone()
    env.rollout(2)
    assert torch.equal(shared[0], before)


def test_actions_are_clamped_to_their_bounds():
    env, twin = (make_env("vmas/balance", num_envs=2, seed=0) for _ in range(2))
    states = []
    for size, one in ((50.0, env), (1.0, twin)):
        data = one.reset()
        data["agents", "action"] = torch.full((2, 3, 2), size)
        states.append(one.step(data)["next", "state"])
    torch.testing.assert_close(*states)


def test_a_seed_beyond_32_bits():
    env = make_env("vmas/balance", num_envs=2, seed=2**40 + 1)
    assert torch.isfinite(env.reset()["state"]).all()


@pytest.mark.parametrize("name", ["transport", "wheel", "football", "kinematic_bicycle"])
def test_render_draws_spheres_boxes_lines_and_colors_of_each_environment(name):
    image = make_env(f"vmas/{name}", num_envs=2, seed=0, reward="mean").render(1)
    assert len({tuple(pixel) for pixel in image.reshape(-1, 3)}) >= 3


def test_partial_resets():
    env = make_env("vmas/balance", num_envs=4, max_steps=3, seed=0)
    data = env.rollout(2)["next"][:, -1]
    mask = torch.tensor([[True], [False], [True], [False]])
    data = env.reset(data.exclude("reward").set("_reset", mask))
    truncated = []
    for _ in range(3):
        data = env.step(data.update(env.full_action_spec.rand()))["next"]
        truncated.append(data["truncated"].clone())
    assert torch.equal(truncated[0], ~mask)
    assert truncated[2][mask].all()


def test_without_vmas(monkeypatch):
    monkeypatch.setattr("torchrl_agentmixer.envs.optional.find_spec", lambda name: None)
    command = r'pip install "torchrl_agentmixer\[vmas\]"'
    for name in ("vmas/balance", "vmas/predator_prey"):
        with pytest.raises(ImportError, match=command):
            make_env(name)
    with pytest.raises(ImportError, match=command):
        VmasTeamEnv("balance", num_envs=2)


@pytest.mark.parametrize("limit", [0, -5])
def test_max_steps_out_of_range(limit):
    with pytest.raises(ValueError, match=f"`max_steps` >= 1, got {limit}"):
        VmasTeamEnv("balance", num_envs=2, max_steps=limit)


def test_discrete_actions():
    env = make_env("vmas/predator_prey", num_envs=2, continuous_actions=False)
    actions = torch.zeros(2, 3, dtype=torch.int64)
    data = env.reset().update(TensorDict({"agents": {"action": actions}}, batch_size=[2]))
    assert env.step(data)["next", "state"].shape == (2, 22)
    assert env.full_action_spec["agents", "action"].shape == (2, 3)


# Scenarios with several groups, and whether they are opponents.
OPPONENTS = ["simple_adversary", "simple_crypto", "simple_push", "simple_tag", "simple_world_comm"]


@pytest.mark.parametrize("name", [*OPPONENTS, "simple_speaker_listener"])
def test_rewards_of_several_groups_are_not_averaged_unasked(name):
    """The mean of `simple_tag` taught the prey to be caught."""
    with pytest.raises(ValueError, match=r"may be opponents.*`reward=\"mean\"`"):
        make_env(f"vmas/{name}", num_envs=2)


def test_a_team_reward_by_a_function():
    options = {"num_envs": 3, "seed": 0}
    env = make_env("vmas/simple_tag", reward=lambda r: r["agent"].sum(-1), **options)
    for data, (_, rewards, _, _) in _follow(env, 5):
        torch.testing.assert_close(data["reward"][:, 0], rewards[-1])  # the prey's
    with pytest.raises(ValueError, match=r"`reward` to return \[3\].*got \[3, 1\]"):
        make_env("vmas/simple_tag", reward=lambda rewards: rewards["agent"], **options)
    with pytest.raises(ValueError, match=r"'man'.*'mean'"):
        make_env("vmas/simple_tag", reward="man", **options)
