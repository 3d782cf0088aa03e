"""SMACv2 environments on a stand-in for the game."""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import StepCounter, TransformedEnv
from torchrl.envs.libs import smacv2 as torchrl_smacv2
from torchrl.envs.utils import check_env_specs

from torchrl_agentmixer.envs import available_envs, make_env
from torchrl_agentmixer.groups import agent_groups, state_dim

from . import smacv2_stand_in, test_conformance

NUM_ENVS = test_conformance.NUM_ENVS
# Number of units, observation size, state size, number of actions.
SIZES = {
    "smacv2/protoss_5_vs_5": (5, 92, 130, 11),
    "smacv2/protoss_10_vs_10": (10, 182, 310, 16),
    "smacv2/terran_5_vs_5": (5, 82, 120, 11),
    "smacv2/terran_10_vs_10": (10, 162, 290, 16),
    "smacv2/zerg_5_vs_5": (5, 82, 120, 11),
    "smacv2/zerg_10_vs_10": (10, 162, 290, 16),
}
NAME = "smacv2/terran_5_vs_5"


@pytest.fixture(autouse=True)
def smacv2(monkeypatch):
    """The stand-in, importable as ``smacv2`` here and in worker processes."""
    assert "smacv2" not in sys.modules, "these tests replace the real SMACv2"
    monkeypatch.syspath_prepend(str(Path(smacv2_stand_in.__file__).parent))
    monkeypatch.setattr(torchrl_smacv2, "_has_smacv2", True)
    import smacv2.env

    yield smacv2.env
    for name in [name for name in sys.modules if name.partition(".")[0] == "smacv2"]:
        del sys.modules[name]


def build(name: str = NAME, **kwargs):
    return make_env(name, **{"num_envs": 2, "seed": 0, "parallel": False, **kwargs})


@pytest.fixture
def conformance(monkeypatch):
    """Run the conformance tests on these environments, with valid actions."""
    builders = {name: partial(make_env, name, parallel=False) for name in SIZES}
    monkeypatch.setattr(test_conformance, "BUILDERS", builders)
    monkeypatch.setattr(test_conformance, "_play", play)
    return test_conformance


def play(env, steps: int, seed: int = 0) -> TensorDictBase:
    """Rollout of random valid actions with automatic resets, ``[steps, num_envs]``."""
    data, history = env.reset(), []
    for step in range(steps):
        with torch.random.fork_rng():
            torch.manual_seed(1000 * seed + step)
            env.rand_action(data)
        stepped, data = env.step_and_maybe_reset(data)
        history.append(stepped.clone())
    return torch.stack(history)


def play_to_win(tensordict: TensorDictBase) -> TensorDictBase:
    """The last valid action: an attack, if one is valid."""
    mask = tensordict["agents", "action_mask"]
    return tensordict.set(("agents", "action"), mask.shape[-1] - 1 - mask.flip(-1).int().argmax(-1))


def games(env) -> list:
    """The stand-in's games of an environment."""
    return [game._env for game in env.base_env._envs]


# Conformance tests.


@pytest.mark.parametrize("name", [name for name in SIZES if name.endswith("_5_vs_5")])
@pytest.mark.parametrize(
    "check",
    [
        "test_specs",
        "test_layout",
        "test_batch_of_one",
        "test_different_seeds_differ",
        "test_environments_in_a_batch_differ",
        "test_two_hundred_random_steps",
    ],
)
def test_conformance_of(conformance, check, name):
    getattr(conformance, check)(name)


@pytest.mark.parametrize("num_envs", [0, -1])
def test_num_envs_out_of_range(conformance, num_envs):
    conformance.test_num_envs_out_of_range(NAME, num_envs)


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes(name):
    n, observation, state, actions = SIZES[name]
    env = build(name, num_envs=1)
    (group,) = agent_groups(env)
    assert (group.n_agents, group.observation_dim, group.action_dim) == (n, observation, actions)
    assert group.discrete
    assert group.masked
    assert state_dim(env) == state
    check_env_specs(env)
    data = env.rollout(2)
    assert data["agents", "observation"].shape == (1, 2, n, observation)
    assert data["agents", "action_mask"].shape == (1, 2, n, actions)
    assert data["agents", "alive"].shape == data["agents", "action"].shape == (1, 2, n)
    assert data["agents", "alive"].dtype == data["agents", "action_mask"].dtype == torch.bool
    assert data["state"].shape == (1, 2, state)
    assert data["next", "battle_won"].shape == (1, 2, 1)
    assert data["next", "battle_won"].dtype == torch.bool


def test_uneven_teams():
    (group,) = agent_groups(build(n_enemies=6))
    assert (group.n_agents, group.action_dim, group.observation_dim) == (5, 12, 90)
    (group,) = agent_groups(build(n_units=7, n_enemies=4))  # medivacs have one action per ally
    assert (group.n_agents, group.action_dim) == (7, 13)


def test_configurations(smacv2):
    """Configurations equal sc2_gen_{race}.yaml in the benchmark's repository."""
    team = {
        "protoss": {"stalker": 0.45, "zealot": 0.45, "colossus": 0.1},
        "terran": {"marine": 0.45, "marauder": 0.45, "medivac": 0.1},
        "zerg": {"zergling": 0.45, "baneling": 0.1, "hydralisk": 0.45},
    }
    exceptions = {"terran": ["medivac"], "zerg": ["baneling"]}
    for race, weights in team.items():
        (game,) = games(build(f"smacv2/{race}_10_vs_10", num_envs=1))
        config = game.distribution_config
        assert game.map_name == f"10gen_{race}"
        assert game.obs_own_pos
        assert (config["n_units"], config["n_enemies"]) == (10, 10)
        units = config["team_gen"]
        assert units["dist_type"] == "weighted_teams"
        assert units["observe"]
        assert dict(zip(units["unit_types"], units["weights"], strict=True)) == weights
        assert units.get("exception_unit_types") == exceptions.get(race)
        starts = config["start_positions"]
        assert starts["dist_type"] == "surrounded_and_reflect"
        assert (starts["p"], starts["map_x"], starts["map_y"]) == (0.5, 32, 32)


# Episodes.


def test_time_limits_truncate_and_battles_terminate():
    limit = 25
    data = play(build(num_envs=NUM_ENVS, max_steps=limit), 100)
    after = data["next"]
    terminated, truncated, done = (after[k][..., 0] for k in ("terminated", "truncated", "done"))
    assert torch.equal(done, terminated | truncated)
    assert terminated.any()
    steps = torch.zeros(NUM_ENVS, dtype=torch.int64)
    for t in range(len(done)):
        steps += 1
        assert torch.equal(truncated[t], (steps == limit) & ~terminated[t])
        steps[done[t]] = 0
    assert truncated.any()


def test_a_won_battle():
    env = build(n_units=8, n_enemies=1, max_steps=100)
    data = env.rollout(100, play_to_win, break_when_any_done=False)
    won, terminated = data["next", "battle_won"], data["next", "terminated"]
    assert won.any()
    assert not (won & ~terminated).any()
    assert not (won & data["next", "truncated"]).any()
    assert not data["battle_won"].any()  # false at the start of the next episode
    returns = data["next", "reward"].sum() / data["next", "done"].sum()
    assert 10 < returns < 21


def test_dead_units_can_only_take_the_no_op():
    data = play(build(num_envs=NUM_ENVS), 60)
    dead = ~data["agents", "alive"]
    mask = data["agents", "action_mask"]
    assert dead.any()
    assert not dead.all()
    assert torch.equal(mask[..., 0], dead)
    assert (mask[dead].sum(-1) == 1).all()
    assert (data["agents", "action"][dead] == 0).all()
    assert (data["agents", "observation"][dead] == 0).all()
    assert (data["agents", "action"][~dead] > 0).all()


@pytest.mark.parametrize("action", [0, 10, 11, -1])
def test_invalid_actions(action):
    env = build()
    env.rollout(3)
    data = play_to_win(env.step_mdp(env.step(play_to_win(env.reset()))))
    mask = data["agents", "action_mask"]
    mask[1, 3, 10] = action != 10  # the last action before 11
    mask[1, 3, 0] = action == -1  # the first one after -1
    data["agents", "action"][1, 3] = action
    valid = mask[1, 3].nonzero().flatten().tolist()
    message = (
        rf"terran_5_vs_5, environment 1, step 2: agent_3 got action {action}: "
        rf"expected one of \[{', '.join(map(str, valid))}\]"
    )
    with pytest.raises(ValueError, match=message):
        env.step(data)


def test_invalid_actions_of_dead_units(monkeypatch):
    env = build(num_envs=1)
    data = env.reset()
    game = games(env)[0].env
    monkeypatch.setattr(game, "_simulate", lambda actions: game.agents[2].suffer(1000))
    data = env.step_mdp(env.step(data.set(("agents", "action"), torch.ones(1, 5).long())))
    assert data["agents", "alive"].tolist() == [[True, True, False, True, True]]
    data["agents", "action"] = torch.ones(1, 5).long()
    with pytest.raises(ValueError, match=r"agent_2 got action 1.*one of \[0\]"):
        env.step(data)


def test_invalid_actions_without_a_mask():
    env = build()
    env.reset()
    action = env.full_action_spec.zero()
    with pytest.raises(RuntimeError, match="failed at step 1: AssertionError: Agent 0 cannot"):
        env.step(action)


def test_random_actions_are_valid_under_transforms():
    env = TransformedEnv(build(num_envs=3), StepCounter())
    check_env_specs(env)
    assert env.group_map == {"agents": [f"agent_{i}" for i in range(5)]}
    data = env.rollout(150, break_when_any_done=False)
    assert data["next", "done"].any()
    assert data["step_count"].shape == (3, 150, 1)


def test_collection():
    env = build(num_envs=2)
    collector = Collector(env, env.rand_action, frames_per_batch=100, total_frames=200)
    batches = list(collector)
    assert [batch.shape for batch in batches] == [(2, 50)] * 2
    assert batches[0]["next", "done"].any()
    collector.shutdown()


# Resets and seeds.


def test_partial_reset_keeps_other_environments():
    env = build(num_envs=3)
    data = env.rand_action(env.reset())
    for _ in range(3):
        data = env.rand_action(env.step_mdp(env.step(data)))
    before = data.clone()
    mask = torch.tensor([True, False, True])
    after = env.reset(data.clone().set("_reset", mask[:, None]))
    for key in ("state", ("agents", "observation"), ("agents", "action_mask")):
        assert torch.equal(after[key][~mask], before[key][~mask])
    assert not torch.equal(after["state"][mask], before["state"][mask])
    assert [game._episode_steps for game in games(env)] == [0, 3, 0]


def test_same_seed_same_trajectories():
    played = play(build(seed=3), 60)
    assert played["next", "done"].any()
    other = build(seed=4)
    other.set_seed(3)  # before the first reset, to seed the game too
    random.random()
    np.random.rand()
    assert test_conformance._same(played, play(other, 60))


def test_seeding_a_running_game_sets_teams_and_starting_positions():
    env = build(seed=3)
    first = env.reset()
    env.rollout(10)
    env.set_seed(3)
    assert torch.equal(env.reset()["state"], first["state"])
    assert not torch.equal(env.reset()["state"], first["state"])


def test_global_random_states_are_unchanged():
    env = build()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(2).tolist()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    env.set_seed(5)
    play(env, 3)
    assert (random.random(), np.random.rand(), torch.rand(2).tolist()) == expected


def test_outputs_are_not_overwritten():
    env = build()
    data = env.reset()
    kept, copies = [data], [data.clone()]
    for _ in range(3):
        data = env.step_mdp(env.step(env.rand_action(data.clone())))
        kept.append(data)
        copies.append(data.clone())
    env.reset()
    assert all(test_conformance._same(a, b) for a, b in zip(kept, copies, strict=True))


def test_resets_before_the_end_of_the_first_episode():
    """Leave the game's process, and the scale of rewards, as they are."""
    env = build(num_envs=1)
    (game,) = games(env)
    env.reset()
    process, scale = game.env._sc2_proc, game.env.max_reward
    health = sum(enemy.health_max + enemy.shield_max for enemy in game.env.enemies.values())
    assert scale == 5 * 10 + 200 + health
    env.rollout(3)
    env.reset()
    assert game.env._sc2_proc is process
    assert game.env.max_reward == scale


# The game's process and its errors.


def test_processes_start_once_and_end(smacv2):
    started = smacv2.StarCraft2Env.games_started
    running = smacv2.StarCraft2Env.games_running
    env = build()
    assert smacv2.StarCraft2Env.games_started == started
    play(env, 40)
    assert smacv2.StarCraft2Env.games_started == started + 2
    env.close()
    assert env.is_closed
    assert smacv2.StarCraft2Env.games_running == running


def test_failed_resets_are_repeated(smacv2, monkeypatch):
    env = build(num_envs=1)
    spawn, failures = smacv2.StarCraft2Env._spawn, [smacv2.CannotResetException("late")]

    def fails_first(self, config):
        if failures:
            raise failures.pop()
        spawn(self, config)

    monkeypatch.setattr(smacv2.StarCraft2Env, "_spawn", fails_first)
    assert env.reset()["agents", "alive"].all()
    play(env, 5)
    # The game restarts: the result of the first reset describes the old game.
    failures.append(smacv2.ProtocolError("gone"))
    games(env)[0].agents[0].health = 0
    assert env.reset()["agents", "alive"].all()


def test_resets_that_keep_failing(smacv2, monkeypatch):
    env = build(num_envs=1)
    calls = []

    def fails(self, config):
        calls.append(config)
        raise smacv2.CannotResetException("late")

    monkeypatch.setattr(smacv2.StarCraft2Env, "_spawn", fails)
    with pytest.raises(RuntimeError, match=r"terran_5_vs_5 started no episode.*after 3 resets"):
        env.reset()
    assert len(calls) == 3


def test_a_crash_of_the_game_truncates(smacv2, monkeypatch):
    env = build(num_envs=2)
    data = env.rand_action(env.reset())

    def gone(*_):
        raise smacv2.ProtocolError("gone")

    monkeypatch.setattr(games(env)[1].env, "_simulate", gone)
    after = env.step(data)["next"]
    assert after["truncated"].tolist() == [[False], [True]]
    assert not after["terminated"].any()
    assert not after["battle_won"].any()
    assert after["reward"][1] == 0
    monkeypatch.undo()
    assert env.step(env.rand_action(env.reset()))["next", "reward"].isfinite().all()


def test_a_game_that_cannot_be_restarted(smacv2, monkeypatch):
    env = build(num_envs=1)
    data = env.step_mdp(env.step(env.rand_action(env.reset())))

    def gone(*_):
        raise smacv2.ProtocolError("gone")

    monkeypatch.setattr(smacv2.StarCraft2Env, "_simulate", gone)
    monkeypatch.setattr(smacv2.StarCraft2Env, "full_restart", gone)
    with pytest.raises(RuntimeError, match="terran_5_vs_5 failed at step 2: ProtocolError: gone"):
        env.step(env.rand_action(data))


def test_without_the_game(smacv2, monkeypatch):
    def absent(*_):
        raise smacv2.SC2LaunchError("Expected to find StarCraft II installed at '~/StarCraftII'.")

    env = build(num_envs=1)
    monkeypatch.setattr(smacv2.StarCraft2Env, "_launch", absent)
    with pytest.raises(RuntimeError, match=r"terran_5_vs_5.*docs/smacv2\.md.*SC2LaunchError: Exp"):
        env.reset()


# Names, options, rendering, processes.


def test_names():
    assert set(SIZES) <= set(available_envs())
    with pytest.raises(ValueError, match="did you mean 'smacv2/protoss_5_vs_5'"):
        make_env("smacv2/protos_5_vs_5")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dificulty": "3"}, "'dificulty'; did you mean 'difficulty'"),
        ({"seeed": 1}, "'seeed'"),
        ({"continuing_episode": False}, "'continuing_episode'"),
        ({"n_enemies": 0}, "`n_enemies` >= 1, got 0"),
        ({"max_steps": 0}, "`max_steps` >= 1, got 0"),
    ],
)
def test_invalid_options(option, message):
    with pytest.raises(ValueError, match=message):
        build(**option)


def test_unknown_race():
    from torchrl_agentmixer.envs import SMACv2TeamEnv

    with pytest.raises(ValueError, match="unknown race 'tarran'; did you mean 'terran'"):
        SMACv2TeamEnv("tarran")


def test_options_reach_the_game():
    (game,) = games(build(num_envs=1, obs_own_pos=False))
    assert not game.obs_own_pos
    assert game.continuing_episode


def test_render():
    env = build()
    data = env.reset()
    before = [env.render(env_index=i) for i in range(2)]
    env.step(env.rand_action(data))
    assert before[0].dtype == np.uint8
    assert before[0].shape == (256, 256, 3)
    assert (before[0] != before[1]).any()
    assert (before[0] != env.render()).any()


def test_render_errors(monkeypatch):
    env = build(num_envs=1)
    env.reset()
    monkeypatch.setitem(sys.modules, "smacv2.env.starcraft2.render", None)
    with pytest.raises(
        RuntimeError, match=r"cannot render here \(docs/smacv2\.md\): ModuleNotFound"
    ):
        env.render()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(conformance):
    conformance.test_on_a_gpu(NAME)


@pytest.mark.slow
def test_worker_processes():
    """Episodes equal those in one process, and an invalid action ends no process."""
    env = build(parallel=True)
    try:
        assert test_conformance._same(play(env, 40), play(build(), 40))
        assert env.render(env_index=1).shape == (256, 256, 3)
        data = env.rand_action(env.reset())
        data["agents", "action"][1, 0] = 0
        with pytest.raises(ValueError, match="environment 1, step 1: agent_0 got action 0"):
            env.step(data)
        env.step(env.rand_action(data))
    finally:
        env.close()
