"""Continuous predator-prey: rewards, captures, observations."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

pytest.importorskip("vmas")

from torchrl_agentmixer.envs import VmasTeamEnv, make_env

FAR = (-0.95, -0.95)
Point = tuple[float, float]


def _env(num_envs: int = 1, **options) -> VmasTeamEnv:
    return make_env("vmas/predator_prey", num_envs=num_envs, seed=0, **options)


def _place(env: VmasTeamEnv, predators: list[Point], prey: list[Point]) -> None:
    """Place all entities at rest, in every environment."""
    env.reset()
    n = env.batch_size[0]
    for agent, point in zip(env.scenario.world.agents, predators, strict=True):
        agent.set_pos(torch.tensor([point]).expand(n, -1).clone(), batch_index=None)
        agent.set_vel(torch.zeros(n, 2), batch_index=None)
    env.scenario.prey_pos = torch.tensor(prey).expand(n, -1, -1).clone()


def _step(env: VmasTeamEnv, actions: torch.Tensor | None = None) -> TensorDictBase:
    if actions is None:
        actions = torch.zeros(*env.batch_size, env.n_agents, 2)
    return env.step(TensorDict({"agents": {"action": actions}}, batch_size=env.batch_size))["next"]


# Predators near the first prey; other predators are far from both prey.
TOUCHES = {0: [], 1: [(0.5, 0.45)], 2: [(0.5, 0.4), (0.5, 0.6)]}
TOUCHES[3] = [*TOUCHES[2], (0.4, 0.5)]


@pytest.mark.parametrize(("touching", "reward"), [(0, 0.0), (1, -0.7), (2, 4.0), (3, 4.0)])
@pytest.mark.parametrize("respawn", [True, False])
def test_captures_take_two_predators_and_one_pays_the_penalty(touching, reward, respawn):
    env = _env(8, capture_reward=4.0, penalty=-0.7, respawn=respawn)
    near = TOUCHES[touching]
    _place(env, near + [FAR] * (3 - len(near)), [(0.5, 0.5), (-0.9, 0.9)])
    after = _step(env)
    torch.testing.assert_close(after["reward"], torch.full((8, 1), reward))
    alive = env.scenario.prey_alive
    assert torch.equal(alive[:, 0], torch.full((8,), respawn or touching < 2))
    assert alive[:, 1].all()
    assert not after["terminated"].any()
    moved = (env.scenario.prey_pos[:, 0] - 0.5).norm(dim=-1)
    if touching >= 2 and respawn:
        assert moved.max() > 0.3  # at a random position
    else:
        assert moved.max() < 0.1


def test_two_prey_at_once():
    env = _env(capture_reward=4.0, penalty=-0.7)
    _place(env, [(0.5, 0.4), (0.5, 0.6), (-0.5, -0.6)], [(0.5, 0.5), (-0.5, -0.5)])
    assert _step(env)["reward"].item() == pytest.approx(4.0 - 0.7)


def test_the_episode_terminates_with_the_last_prey():
    env = _env(respawn=False)
    _place(env, [(0.5, 0.4), (0.5, 0.6), FAR], [(0.5, 0.5), (0.5, 0.5)])
    after = _step(env)
    assert after["reward"].item() == pytest.approx(20.0)
    assert after["terminated"].item()
    assert not after["truncated"].item()
    assert env.reset()["state"][0, -2:].tolist() == [1.0, 1.0]


def test_removed_prey_have_no_effect():
    env = _env(respawn=False, penalty=-1.0)
    _place(env, [(0.5, 0.4), (0.5, 0.6), FAR], [(0.5, 0.5), (-0.9, 0.9)])
    assert _step(env)["reward"].item() == pytest.approx(10.0)
    for _ in range(3):
        after = _step(env)
        assert after["reward"].item() == 0
        assert not after["agents", "observation"][0, :2, 4:7].any()


def test_observation_layout():
    env = _env(view_radius=0.5)
    _place(env, [(0.0, 0.0), (0.3, 0.0), (0.0, -0.9)], [(0.0, 0.3), (0.9, 0.9)])
    data = _step(env)
    own, prey = data["agents", "observation"][0, 0], env.scenario.prey_pos[0]
    expected = [0, 0, 0, 0, *prey[0].tolist(), 1, 0, 0, 0, 0.3, 0, 1, 0, 0, 0]
    torch.testing.assert_close(own, torch.tensor(expected))
    second = data["agents", "observation"][0, 1]
    torch.testing.assert_close(second[10:13], torch.tensor([-0.3, 0, 1]))  # the first predator


@pytest.mark.parametrize("far", [(0.9, 0.9), (-0.9, 0.2)])
def test_limited_view(far):
    """Prey outside the view change the state, not the observations."""
    predators = [(0.0, 0.0), (0.2, 0.0), (0.0, -0.2)]
    env = _env(view_radius=0.5)
    _place(env, predators, [(0.1, 0.1), (0.9, -0.9)])
    env.set_seed(1)
    one = _step(env)
    _place(env, predators, [(0.1, 0.1), far])
    env.set_seed(1)
    other = _step(env)
    assert torch.equal(one["agents", "observation"], other["agents", "observation"])
    assert not torch.equal(one["state"], other["state"])
    _place(env, predators, [(0.1, 0.1), (0.3, 0.3)])
    env.set_seed(1)
    near = _step(env)
    assert not torch.equal(one["agents", "observation"], near["agents", "observation"])


def test_state_layout():
    env = _env(5, respawn=False)
    data = env.rollout(4)["next"][:, -1]
    state, scenario = data["state"], env.scenario
    predators = torch.stack([agent.state.pos for agent in scenario.world.agents], 1)
    velocities = torch.stack([agent.state.vel for agent in scenario.world.agents], 1)
    torch.testing.assert_close(state[:, :6], predators.flatten(1))
    torch.testing.assert_close(state[:, 6:12], velocities.flatten(1))
    torch.testing.assert_close(state[:, 12:16], scenario.prey_pos.flatten(1))
    torch.testing.assert_close(state[:, 20:], scenario.prey_alive.float())
    torch.testing.assert_close(state[:, :6], data["agents", "observation"][..., :2].flatten(1))
    assert state.shape == (5, 22)


def test_prey_flee_within_their_view_and_stay_in_the_arena():
    env = _env(64, prey_view=0.4, catch_radius=0.05)
    _place(env, [(0.0, 0.3), FAR, FAR], [(0.0, 0.0), (0.9, 0.9)])
    _step(env)
    assert (env.scenario.prey_pos[:, 0, 1] < -0.05).all()  # all flee
    _place(env, [(0.0, 0.5), FAR, FAR], [(0.0, 0.0), (0.9, 0.9)])
    _step(env)
    assert (env.scenario.prey_pos[:, 0, 1] > 0).any()  # outside the view they wander
    for _ in range(50):
        _step(env)
        assert (env.scenario.prey_pos.abs() <= 1).all()


def test_prey_speed():
    env = _env(32, prey_speed=0.6, capture_reward=0.0)
    env.reset()
    for _ in range(20):
        before = env.scenario.prey_pos.clone()
        _step(env, 2 * torch.rand(32, 3, 2) - 1)
        moved = (env.scenario.prey_pos - before).norm(dim=-1)
        assert (moved > 0.06 + 1e-5).float().mean() < 0.1  # except prey that reappeared


def _pursue(env: VmasTeamEnv, state: torch.Tensor, hunters: int) -> torch.Tensor:
    """Actions of ``hunters`` predators toward the prey nearest to their center; others stay."""
    predators, prey = state[:, :6].unflatten(-1, (3, 2)), state[:, 12:16].unflatten(-1, (2, 2))
    center = predators[:, :hunters].mean(1, keepdim=True)
    target = (prey - center).norm(dim=-1).argmin(-1)[:, None, None].expand(-1, 1, 2)
    actions = (10 * (prey.gather(1, target) - predators)).clamp(-1, 1)
    actions[:, hunters:] = 0
    return actions


def _return(env: VmasTeamEnv, policy) -> float:
    data, total = env.reset(), 0.0
    for _ in range(100):
        data = _step(env, policy(data["state"]))
        total = total + data["reward"]
    return float(total.mean())


def test_returns_of_scripted_policies():
    env = _env(64, penalty=-0.1)
    generator = torch.Generator().manual_seed(0)
    lazy = _return(env, lambda s: 2 * torch.rand(64, 3, 2, generator=generator) - 1)
    alone = _return(env, lambda s: _pursue(env, s, hunters=1))
    pair = _return(env, lambda s: _pursue(env, s, hunters=2))
    assert lazy < 10  # less than one capture
    assert alone < 10
    assert pair > 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_predators": 1}, "`n_predators` >= 2, got 1"),
        ({"n_prey": 0}, "`n_prey` >= 1, got 0"),
        ({"view_radius": 0.0}, "`view_radius` > 0, got 0"),
        ({"catch_radius": -1.0}, "`catch_radius` > 0, got -1"),
        ({"penalty": 0.1}, "`penalty` <= 0.*got 0.1"),
        ({"max_steps": 0}, "`max_steps` >= 1, got 0"),
        ({"view_radios": 1.0}, "did you mean 'view_radius'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        _env(**options)
