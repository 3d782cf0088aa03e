"""The wrapper over SMACv2's Python code: tests of the stand-in, processes, failures and seeds.

Needs ``SMACV2_SOURCE``, as ``test_smacv2_real.py``.
"""

from __future__ import annotations

import importlib
import inspect

import pytest
from torchrl.envs.utils import check_env_specs

from torchrl_agentmixer.envs import make_env

from . import test_conformance, test_smacv2
from .smacv2_pair import Pair, games
from .test_smacv2 import SIZES, build, conformance  # noqa: F401

NAME = test_smacv2.NAME
# Tests that hold for the stand-in and for the real package.
SHARED = [
    test_smacv2.test_uneven_teams,
    test_smacv2.test_configurations,
    test_smacv2.test_time_limits_truncate_and_battles_terminate,
    test_smacv2.test_a_won_battle,
    test_smacv2.test_dead_units_can_only_take_the_no_op,
    test_smacv2.test_invalid_actions_without_a_mask,
    test_smacv2.test_random_actions_are_valid_under_transforms,
    test_smacv2.test_collection,
    test_smacv2.test_partial_reset_keeps_other_environments,
    test_smacv2.test_same_seed_same_trajectories,
    test_smacv2.test_seeding_a_running_game_sets_teams_and_starting_positions,
    test_smacv2.test_global_random_states_are_unchanged,
    test_smacv2.test_outputs_are_not_overwritten,
    test_smacv2.test_resets_before_the_end_of_the_first_episode,
    test_smacv2.test_options_reach_the_game,
]


@pytest.fixture
def real(packages):
    """The real package."""
    return packages.load("real")


@pytest.fixture
def pysc2(real):
    """The stand-in for the connection to the game."""
    return importlib.import_module("pysc2.controller")


@pytest.mark.parametrize("check", SHARED, ids=lambda check: check.__name__)
def test_as_the_stand_in(real, check):
    check(*[real] * len(inspect.signature(check).parameters))


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes(real, name):
    test_smacv2.test_sizes(name)


@pytest.mark.parametrize("action", [0, 10, 11, -1])
def test_invalid_actions(real, action):
    test_smacv2.test_invalid_actions(action)


@pytest.mark.parametrize(
    "check",
    ["test_specs", "test_layout", "test_different_seeds_differ", "test_two_hundred_random_steps"],
)
def test_conformance_of(real, conformance, check):  # noqa: F811
    getattr(conformance, check)(NAME)


OPTIONS = [
    {"obs_last_action": True, "obs_pathing_grid": True, "obs_terrain_height": True},
    {"obs_timestep_number": True, "state_timestep_number": True, "state_last_action": False},
    {"obs_all_health": False, "obs_own_health": False, "fully_observable": True},
    {"obs_starcraft": False, "obs_timestep_number": True},
    {"reward_sparse": True, "action_mask": False},
    {"reward_only_positive": False, "reward_scale": False},
    {"heuristic_ai": True, "heuristic_rest": True},
    {"game_version": "4.10", "step_mul": 4, "move_amount": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_options_that_the_stand_in_lacks(real, options):
    for race in ("protoss", "terran"):
        env = build(f"smacv2/{race}_5_vs_5", num_envs=1, **options)
        check_env_specs(env)
        data = env.rollout(40, break_when_any_done=False)
        assert data["next", "reward"].isfinite().all()
        assert len(data["next", "state"][0, 0]) == games(env)[0].get_state_size()


# Processes and seeds.


def test_processes_start_once_and_end(pysc2):
    started, running = pysc2.Process.started, pysc2.Process.running
    env = build()
    assert pysc2.Process.started == started
    env.rollout(3)
    data = test_smacv2.play(env, 60)
    assert data["next", "done"].any()
    assert pysc2.Process.started == started + 2
    env.close()
    assert env.is_closed
    assert pysc2.Process.running == running


def test_seed_and_options_reach_the_game(pysc2):
    env = build(num_envs=1, difficulty="A", seed=11)
    env.reset()
    (game,) = games(env)
    controller = game.env._controller
    seed = controller.created.random_seed
    assert type(seed) is int
    assert controller.created.local_map.map_path == "SMAC_Maps/32x32_flat.SC2Map"
    computer = controller.created.player_setup[1]
    assert (computer.race, controller.joined.race, computer.difficulty) == (1, 1, 10)
    env.set_seed(12)
    env.reset()
    assert game.env._controller is controller
    for other_seed in (11, 12):
        other = build(num_envs=1, seed=other_seed)
        other.reset()
        assert (games(other)[0].env._controller.game.seed == seed) == (other_seed == 11)


def test_units_that_appear_late_count_once_in_the_scale_of_rewards(pysc2, monkeypatch):
    scales = []
    for interval in (0, 2):
        monkeypatch.setattr(pysc2.Game, "spawn_interval", interval)
        env = build(num_envs=1)
        env.reset()
        (game,) = games(env)
        enemies = game.env.enemies.values()
        health = sum(enemy.health_max + enemy.shield_max for enemy in enemies)
        assert game.env.max_reward == 5 * 10 + 200 + health
        scales.append(game.env.max_reward)
    assert scales[0] == scales[1]


# Failures.


def gone(*_):
    protocol = importlib.import_module("pysc2.lib.protocol")
    raise protocol.ConnectionError("gone")


def test_a_crash_of_the_game_truncates(packages, monkeypatch):
    pair = Pair(packages, NAME, num_envs=2)
    data = pair.real.rand_action(pair.reset())
    (_, game), (_, other) = games(pair.real), games(pair.stand_in)

    def lost(_):
        raise pair.stand_in_package.ProtocolError("gone")

    monkeypatch.setattr(game.env._controller, "step", gone)
    monkeypatch.setattr(other.env, "_simulate", lost)
    stepped = pair.step(data)
    assert pair.last["real"] == (0, True, {})
    assert stepped["next", "truncated"].tolist() == [[False], [True]]
    assert not stepped["next", "terminated"].any()
    assert game.env.force_restarts == 1
    monkeypatch.undo()
    data = pair.real.maybe_reset(pair.real.step_mdp(stepped))
    assert data["agents", "alive"].all()
    assert pair.real.step(pair.real.rand_action(data))["next", "reward"].isfinite().all()


@pytest.mark.parametrize("command", ["kill_unit", "create_unit"])
def test_a_lost_connection_at_a_reset(pysc2, monkeypatch, command):
    env = build(num_envs=1)
    env.rollout(3)
    (game,) = games(env)
    debug = game.env._controller.debug

    def lost(commands):
        return gone() if getattr(commands[0], command) else debug(commands)

    monkeypatch.setattr(game.env._controller, "debug", lost)
    data = env.reset()
    assert game.env.force_restarts == 1
    assert {unit.tag for unit in game.env.agents.values()} < set(game.env._controller.game.units)
    assert data["agents", "alive"].all()
    env.step(env.rand_action(data))


def test_units_that_do_not_appear(pysc2, monkeypatch):
    monkeypatch.setattr(pysc2.Game, "spawn_delay", 10_000)
    with pytest.raises(RuntimeError, match=r"terran_5_vs_5 started no episode.*after 3 resets"):
        build(num_envs=1).reset()


def test_a_game_that_cannot_be_restarted(pysc2, monkeypatch):
    env = build(num_envs=1)
    data = env.rand_action(env.reset())
    monkeypatch.setattr(pysc2.Controller, "step", gone)
    monkeypatch.setattr(pysc2.Controller, "create_game", gone)
    with pytest.raises(RuntimeError, match="terran_5_vs_5 failed at step 1: ConnectionError: gone"):
        env.step(data)


def test_without_the_game(real, monkeypatch):
    configs = importlib.import_module("pysc2.run_configs")

    def absent(version=None):
        raise configs.SC2LaunchError("Expected to find StarCraft II installed at '~/StarCraftII'.")

    monkeypatch.setattr(configs, "get", absent)
    with pytest.raises(RuntimeError, match=r"terran_5_vs_5.*docs/smacv2\.md.*SC2LaunchError: Exp"):
        build(num_envs=1).reset()


@pytest.mark.slow
def test_worker_processes(real):
    env = make_env(NAME, num_envs=2, seed=0, parallel=True)
    try:
        played = test_smacv2.play(env, 30)
        assert test_conformance._same(played, test_smacv2.play(build(), 30))
    finally:
        env.close()
