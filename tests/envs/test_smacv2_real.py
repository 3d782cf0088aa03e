"""The stand-in for SMACv2 against the real package's Python code.

Needs the source of https://github.com/oxwhirl/smacv2 and no game: ``starcraft2_stand_in`` replaces
PySC2 and the game's protocol. Skipped without ``SMACV2_SOURCE``, the path of a checkout::

    SMACV2_SOURCE=path/to/smacv2 pytest tests/envs -k smacv2_real
"""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import torch

from torchrl_agentmixer.envs.scenarios import RACES, capability_config
from torchrl_agentmixer.envs.smacv2_game import share_generator

from . import smacv2_pair as pairs

# Options of environments.
CONFIGURATIONS = {
    "protoss": ("protoss_5_vs_5", {}),
    "terran": ("terran_5_vs_5", {}),
    "zerg": ("zerg_5_vs_5", {}),
    "10 units": ("zerg_10_vs_10", {}),
    "more enemies": ("protoss_5_vs_5", {"n_enemies": 8}),
    "fewer enemies": ("terran_5_vs_5", {"n_units": 7, "n_enemies": 4}),
    "more enemies, healed": ("terran_5_vs_5", {"n_enemies": 7}),
    "field of view": ("protoss_5_vs_5", {"conic_fov": True}),
    "wide field of view": ("terran_5_vs_5", {"conic_fov": True, "num_fov_actions": 4}),
    "without position": ("zerg_5_vs_5", {"obs_own_pos": False}),
    "one range": ("zerg_5_vs_5", {"use_unit_ranges": False}),
    "minimum range": ("zerg_5_vs_5", {"min_attack_range": 5.5}),
    "observed by chance": ("terran_5_vs_5", {"prob_obs_enemy": 0.4}),
    "short moves": ("zerg_5_vs_5", {"move_amount": 1}),
    "time limit": ("protoss_5_vs_5", {"max_steps": 12}),
}


def choose(data, step: int):
    """Random valid actions, often the last valid one: an attack, if one is valid."""
    with torch.random.fork_rng():
        torch.manual_seed(step)
        mask = data["agents", "action_mask"]
        drawn = torch.multinomial(mask.flatten(0, -2).float(), 1).reshape(mask.shape[:-1])
        attack = mask.shape[-1] - 1 - mask.flip(-1).int().argmax(-1)
        attacks = torch.rand(drawn.shape) < 0.6
    return data.set(("agents", "action"), torch.where(attacks, attack, drawn))


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_same_episodes(packages, name):
    """Observations, states, masks, rewards and ends of 80 steps."""
    scenario, options = CONFIGURATIONS[name]
    pair = pairs.Pair(packages, f"smacv2/{scenario}", num_envs=2, **options)
    data, steps = pair.reset(), []
    for step in range(80):
        stepped = pair.step(choose(data, step))
        steps.append(stepped["next"])
        data = pair.next(stepped)
    played = torch.stack(steps)
    pair.close()
    assert played["done"].sum() >= 2
    assert not played["agents", "alive"].all()


# Ends of battles.


def kill(game, owner: int, keep: str | None = None) -> None:
    """Kill the units of a player in the real package's game, but those of one kind."""
    battle = game.env._controller.game
    killed = [unit for unit in battle.units.values() if unit.owner == owner]
    battle.kill([unit.tag for unit in killed if unit.kind.type.name != keep])


@pytest.mark.parametrize("race", ["protoss", "terran"])
@pytest.mark.parametrize("killed", [[1], [2], [1, 2]], ids=["lost", "won", "both dead"])
def test_ends(packages, race, killed):
    pair = pairs.Pair(packages, f"smacv2/{race}_5_vs_5", num_envs=1)
    (game,) = pairs.games(pair.real)
    for _ in range(2):  # also when the game goes on after an episode
        data = pair.next(pair.step(choose(pair.reset(), 0)))
        for owner in killed:
            kill(game, owner)
        won = killed == [2]
        stepped = pair.step(choose(data, 1))
        assert stepped["next", "terminated"].all()
        assert not stepped["next", "truncated"].any()
        assert stepped["next", "battle_won"].item() == won
        reward, over, info = pair.last["real"]
        assert over is True
        assert reward > 4 or not won
        assert info == {
            "battle_won": won,
            "dead_allies": 5 * (1 in killed),
            "dead_enemies": 5 * (2 in killed),
        }


@pytest.mark.parametrize(("owner", "won"), [(1, False), (2, True)])
def test_medivacs_alone_lose(packages, owner, won):
    pair = pairs.Pair(packages, "smacv2/terran_10_vs_10", num_envs=1, seed=1)
    (game,) = pairs.games(pair.real)
    data = pair.reset()
    kill(game, owner, keep="Medivac")
    after = pair.step(choose(data, 0))["next"]
    assert after["terminated"].all()
    assert after["battle_won"].item() == won
    info = pair.last["real"][2]
    assert 0 < info["dead_allies" if owner == 1 else "dead_enemies"] < 10


def test_time_limit(packages):
    pair = pairs.Pair(packages, "smacv2/zerg_5_vs_5", num_envs=1, max_steps=2)
    data = pair.next(pair.step(choose(pair.reset(), 0)))
    assert pair.last["real"][1:] == (False, {**pair.last["real"][2], "battle_won": False})
    assert "episode_limit" not in pair.last["real"][2]
    after = pair.step(choose(data, 1))["next"]
    assert after["truncated"].all()
    assert not after["terminated"].any()
    assert pair.last["real"][1]
    assert pair.last["real"][2]["episode_limit"] is True


def test_a_battle_lost_at_the_time_limit(packages):
    pair = pairs.Pair(packages, "smacv2/zerg_5_vs_5", num_envs=1, max_steps=1)
    data = pair.reset()
    kill(pairs.games(pair.real)[0], 1)
    after = pair.step(choose(data, 0))["next"]
    assert after["terminated"].all()
    assert not after["truncated"].any()


# The packages' interfaces.


def build_games(packages, race="terran", n_units=5, n_enemies=5, observe=True, **options) -> list:
    """A game of the real package and one of the stand-in."""
    built = []
    for package in ("real", "stand-in"):
        config = capability_config(race, n_units, n_enemies)
        config["team_gen"]["observe"] = observe
        wrapper = packages.load(package).StarCraftCapabilityEnvWrapper
        built.append(wrapper(map_name=f"10gen_{race}", capability_config=config, **options))
    return built


def test_arguments_of_the_constructor(packages):
    """The stand-in has some of the real arguments, in their order and with their defaults."""
    real, stand_in = (
        inspect.signature(packages.load(package).StarCraft2Env).parameters
        for package in ("real", "stand-in")
    )
    shared = {name: parameter for name, parameter in real.items() if name in stand_in}
    assert list(shared) == list(stand_in)
    for name, parameter in shared.items():
        assert stand_in[name].default == parameter.default, name


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("sizes", [(5, 5), (3, 6), (6, 2)])
@pytest.mark.parametrize("options", [{}, {"conic_fov": True}, {"obs_own_pos": True}])
def test_environment_info(packages, race, sizes, options):
    real, stand_in = build_games(packages, race, *sizes, **options)
    info = real.get_env_info()
    assert stand_in.get_env_info() == info
    assert info["obs_shape"] == stand_in.get_obs_size() == real.get_obs_size()
    assert info["state_shape"] == stand_in.get_state_size() == real.get_state_size()
    assert info["n_actions"] == stand_in.get_total_actions() == real.get_total_actions()
    observations, state = real.reset()
    others, other_state = stand_in.reset()
    assert [each.shape for each in observations] == [each.shape for each in others]
    assert {each.dtype for each in observations} == {each.dtype for each in others}
    assert (state.shape, state.dtype) == (other_state.shape, other_state.dtype)
    real.close()


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("sizes", [(5, 5), (3, 6), (6, 2)])
def test_teams_and_starting_positions(packages, race, sizes):
    drawn = []
    for game in build_games(packages, race, *sizes):
        random.seed(0)
        generator = np.random.default_rng(0)
        for distribution in game.env_key_to_distribution_map.values():
            share_generator(distribution, generator)
        each = game.env_key_to_distribution_map
        drawn.append([{k: each[k].generate() for k in each} for _ in range(50)])
    for draw, other in zip(*drawn, strict=True):
        assert draw["team_gen"] == other["team_gen"]
        starts, others = draw["start_positions"], other["start_positions"]
        assert starts.keys() == others.keys()
        for side in starts:
            np.testing.assert_allclose(starts[side]["item"], others[side]["item"], atol=1e-12)


@pytest.mark.parametrize("observe", [True, False])
def test_types_of_allies_are_observed_or_hidden(packages, observe):
    observations = []
    for game in build_games(packages, "protoss", observe=observe):
        random.seed(0)
        for distribution in game.env_key_to_distribution_map.values():
            share_generator(distribution, np.random.default_rng(3))
        observations.append(np.array(game.reset()[0]))
        game.close()
    np.testing.assert_allclose(*observations, atol=1e-6)
    allies = observations[0][:, 4 + 5 * 9 : -5].reshape(5, 4, 9)  # between enemies and own features
    assert (allies[..., 0] == 1).any()
    assert (allies[..., 6:].sum(-1) == observe * allies[..., 0]).all()


def test_seed_and_generators(packages):
    for game in build_games(packages, seed=7):
        assert game.env.seed() == 7
        with pytest.raises(NotImplementedError):
            game.seed()
