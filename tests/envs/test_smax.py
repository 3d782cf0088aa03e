"""SMAX environments."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_agentmixer.envs import available_envs, make_env
from torchrl_agentmixer.envs.scenarios import RACES, SMAX_SCENARIOS
from torchrl_agentmixer.groups import agent_groups, state_dim

from . import test_conformance
from .test_smacv2 import play

pytest.importorskip("jaxmarl", reason='needs: pip install "torchrl_agentmixer[smax]"')

import jax
import jax.numpy as jnp

from torchrl_agentmixer.envs.smax_battles import WeightedTeams, make_battle

jax.config.update("jax_disable_most_optimizations", True)  # halves compilation time

NUM_ENVS = test_conformance.NUM_ENVS
NAME = "smax/smacv2_5_units"
STOP = 4
# Number of units, observation size, state size, number of actions.
SIZES = {
    "smax/smacv2_5_units": (5, 127, 120, 10),
    "smax/smacv2_10_units": (10, 257, 240, 15),
    "smax/3m": (3, 75, 72, 8),
    "smax/5m_vs_6m": (5, 140, 132, 11),
    "smax/protoss_5_vs_5": (5, 97, 90, 10),
    "smax/terran_5_vs_5": (5, 97, 90, 10),
    "smax/zerg_10_vs_10": (10, 197, 180, 15),
}
build = partial(make_env, NAME, num_envs=NUM_ENVS, seed=0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def conformance(monkeypatch):
    """Run the conformance tests on SMAX, with valid actions."""

    def stop(env, steps, seed=0):  # valid for all units
        return [env.full_action_spec.zero().apply(lambda x: x + STOP) for _ in range(steps)]

    monkeypatch.setattr(test_conformance, "BUILDERS", {NAME: partial(make_env, NAME)})
    monkeypatch.setattr(test_conformance, "STOCHASTIC", [NAME])
    monkeypatch.setattr(test_conformance, "_play", play)
    monkeypatch.setattr(test_conformance, "_actions", stop)
    return test_conformance


def attack(tensordict: TensorDictBase) -> TensorDictBase:
    """Attack the last enemy in range; otherwise move to the center, or stop if dead."""
    mask = tensordict["agents", "action_mask"]
    last = mask.shape[-1] - 1 - mask.flip(-1).int().argmax(-1)
    x, y = tensordict["agents", "observation"][..., -9:-7].unbind(-1)
    east, north = x < 0.5, y < 0.5
    far = (x - 0.5).abs() > (y - 0.5).abs()
    go = torch.where(far, torch.where(east, 1, 3), torch.where(north, 0, 2))
    action = torch.where((last == STOP) & tensordict["agents", "alive"], go, last)
    return tensordict.set(("agents", "action"), action)


# Conformance tests.


@pytest.mark.parametrize(
    "check",
    [
        "test_specs",
        "test_layout",
        "test_batch_of_one",
        "test_same_seed_same_trajectories",
        "test_different_seeds_differ",
        "test_environments_in_a_batch_differ",
        "test_global_random_state_is_unchanged",
        "test_partial_reset_keeps_other_environments",
        "test_time_limits_truncate_and_ends_terminate",
        "test_two_hundred_random_steps",
        "test_outputs_are_not_overwritten",
        "test_simulation_state_of_another_batch_size",
        "test_render",
    ],
)
def test_conformance_of(conformance, check):
    getattr(conformance, check)(NAME)


def test_resume_from_a_simulation_state(conformance, tmp_path):
    conformance.test_resume_from_a_simulation_state(NAME, tmp_path)


@pytest.mark.parametrize("num_envs", [0, -1])
def test_num_envs_out_of_range(conformance, num_envs):
    conformance.test_num_envs_out_of_range(NAME, num_envs)


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes(name):
    n, observation, state, actions = SIZES[name]
    env = make_env(name)
    (group,) = agent_groups(env)
    assert (group.n_agents, group.observation_dim, group.action_dim) == (n, observation, actions)
    assert group.discrete
    assert group.masked
    assert state_dim(env) == state


def test_environments_are_independent():
    """Also environments that share compiled code."""
    alone = play(build(), 20)
    env, other = build(), build(seed=6)
    draw = env.rand_action
    env.rand_action = lambda data: (draw(data), other.rollout(2))
    assert env._simulator is other._simulator
    assert (play(env, 20) == alone).all()


def test_shapes_and_dtypes():
    data = build().rollout(2)
    assert data["agents", "alive"].shape == data["agents", "action"].shape == (NUM_ENVS, 2, 5)
    assert data["agents", "alive"].dtype == data["agents", "action_mask"].dtype == torch.bool
    assert data["agents", "action"].dtype == torch.int64
    assert data["next", "battle_won"].shape == (NUM_ENVS, 2, 1)
    assert data["next", "battle_won"].dtype == torch.bool


def test_names():
    names = {name for name in available_envs() if name.startswith("smax/")}
    assert {f"smax/{race}_{n}_vs_{n}" for race in RACES for n in (5, 10)} < names
    assert {f"smax/{scenario}" for scenario in SMAX_SCENARIOS} < names
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO

    assert set(SMAX_SCENARIOS) == set(MAP_NAME_TO_SCENARIO)


# Comparison with JaxMARL.


def test_steps_equal_jaxmarl():
    """Equal keys, states and actions give equal observations, rewards and terminations."""
    env, steps = build(), 30
    battle = env._simulator.battle
    step = jax.jit(jax.vmap(battle.step_env))
    data = env.reset()
    state = env._battles[0]
    for _ in range(steps):
        key = env._key
        attack(data)
        keys = jax.random.split(key, NUM_ENVS + 1)[1:]
        actions = jnp.array(data["agents", "action"].numpy())
        named = {agent: actions[:, i] for i, agent in enumerate(battle.agents)}
        seen, state, reward, done, _ = step(keys, state, named)
        stepped, data = env.step_and_maybe_reset(data)
        after = stepped["next"]
        for i, agent in enumerate(battle.agents):
            same = torch.from_dlpack(seen[agent])
            torch.testing.assert_close(after["agents", "observation"][:, i], same)
            torch.testing.assert_close(after["reward"][:, 0], torch.from_dlpack(reward[agent]))
        torch.testing.assert_close(after["state"], torch.from_dlpack(seen["world_state"]))
        assert after["terminated"][:, 0].tolist() == done["__all__"].tolist()
        if after["done"].any():
            break
    else:
        raise AssertionError("no battle ended")


def test_a_won_battle():
    env = make_env("smax/3m", num_envs=32, seed=0)
    after = env.rollout(150, attack, break_when_any_done=False)["next"]
    won, done = after["battle_won"], after["done"]
    assert won.any()
    assert (done & ~won).any()
    assert not (won & ~after["terminated"]).any()
    # The reward contains the bonus of 1, and all enemies are dead.
    assert (after["reward"][won] > 1).all()
    assert (after["reward"][~won] < 1).all()
    index = won.squeeze(-1)
    enemies = after["state"][index][:, : 6 * 10].unflatten(-1, (6, 10))[:, 3:, 0]
    assert (enemies == 0).all()
    assert after["agents", "alive"][index].any(-1).all()


def test_time_limits_are_exact():
    """JaxMARL's time limit is one step late."""

    def stop(tensordict):
        return tensordict.set(("agents", "action"), torch.full((NUM_ENVS, 3), STOP))

    for options, expected in (({}, 100), ({"max_steps": 9}, 9)):
        # Enemies that do not shoot, so that no unit dies.
        env = make_env("smax/3m", num_envs=NUM_ENVS, enemy_shoots=False, **options)
        after = env.rollout(120, stop)["next"]
        assert after["truncated"][:, :, 0].sum(1).tolist() == [1] * NUM_ENVS
        assert after.shape[1] == expected
        assert not after["terminated"].any()
        assert not after["battle_won"].any()


def test_dead_units_can_only_stop():
    data = play(build(), 60)
    dead, mask = ~data["agents", "alive"], data["agents", "action_mask"]
    assert dead.any()
    assert not dead.all()
    assert (mask[dead].nonzero()[:, 1] == STOP).all()
    assert (data["agents", "action"][dead] == STOP).all()
    assert mask[~dead][:, : STOP + 1].all()
    assert mask[..., STOP + 1 :].any()


@pytest.mark.parametrize("action", [0, 9, 10, -1])
def test_invalid_actions(action):
    env = build()
    data = env.reset()
    while data["agents", "alive"][2].all():
        data = env.step_mdp(env.step(env.rand_action(data)))
    agent = int((~data["agents", "alive"][2]).nonzero()[0])
    env.rand_action(data)["agents", "action"][2, agent] = action
    message = (
        rf"smax/smacv2_5_units, environment 2, step \d+: agent_{agent} got action {action}: "
        rf"expected one of \[4\]"
    )
    before = env._battles
    with pytest.raises(ValueError, match=message):
        env.step(data)
    assert env._battles is before


def test_before_the_first_reset():
    env = build()
    for call in (lambda: env.step(env.fake_tensordict()), env.render):
        with pytest.raises(RuntimeError, match="expected a reset before"):
            call()


# Memory shared by torch and JAX.


def test_outputs_and_actions_may_be_overwritten():
    """Writing into outputs or actions does not change the simulation."""
    env, twin = build(), build()
    data, expected = env.reset(), twin.reset()
    for step in range(25):
        actions = [None, None]
        for i, one in enumerate((expected, data)):
            with torch.random.fork_rng():
                torch.manual_seed(step)
                actions[i] = twin.rand_action(one)["agents", "action"]
        assert torch.equal(*actions)
        stepped, next_expected = twin.step_and_maybe_reset(expected)
        ours = env._step(data)
        actions[1].fill_(-7)
        after = stepped["next"].select(*ours.keys())
        assert (ours == after).all()
        # The next step starts from the twin's outputs; ours are overwritten.
        done = ours["done"].clone()
        ours.apply_(lambda x: x.fill_(1))
        if done.any():
            again = env._reset(next_expected.empty().set("_reset", done))
            again.apply_(lambda x: x.fill_(1))
        data, expected = next_expected.clone(), next_expected
    assert done.numel() == NUM_ENVS


def test_a_partial_reset_describes_all_battles():
    env = build()
    last = env.rollout(5)[:, -1]["next"]
    mask = torch.arange(NUM_ENVS)[:, None] < 2
    data = env._reset(last.empty().set("_reset", mask))
    keep = ~mask.squeeze(-1)
    for key in ("state", ("agents", "observation"), ("agents", "action_mask"), ("agents", "alive")):
        assert torch.equal(data[key][keep], last[key][keep])
    assert data["agents", "alive"][:2].all()


# Compilation, reset states, random numbers.


def test_compiles_once():
    env = build(num_envs=9)
    functions = (env._simulator.start, env._simulator.restart, env._simulator.step)
    before = [function._cache_size() for function in functions]
    play(env, 60)
    env.set_seed(1)
    play(env, 3)
    play(build(num_envs=9, max_steps=3, seed=8), 9)
    assert [function._cache_size() for function in functions] == [x + 1 for x in before]


def test_compilation_cache_on_disk(tmp_path):
    code = """
import os, sys, pathlib
import torchrl_agentmixer
from torchrl_agentmixer.envs import available_envs, make_env
assert "smax/3m" in available_envs()
assert "jax" not in sys.modules and "jaxmarl" not in sys.modules
out = sys.stdout
make_env("smax/3m")
import jax
assert jax.config.jax_compilation_cache_dir == sys.argv[1], jax.config.jax_compilation_cache_dir
assert sys.stdout is out
"""
    home = {"HOME": str(tmp_path), "PATH": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    default = str(tmp_path / ".cache" / "torchrl_agentmixer" / "jax")
    chosen = str(tmp_path / "chosen")
    for folder, options in ((default, {}), (chosen, {"JAX_COMPILATION_CACHE_DIR": chosen})):
        command = [sys.executable, "-W", "ignore", "-c", code, folder]
        done = subprocess.run(command, check=True, env={**home, **options}, capture_output=True)
        assert done.stdout == b""


def test_initial_states_are_used_once():
    env = build(num_envs=4)
    starts = []
    for masked in ([1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]):
        mask = torch.tensor(masked, dtype=torch.bool)
        data = env.reset(env.fake_tensordict().empty().set("_reset", mask[:, None]))
        starts.append(data["state"][mask])
    starts = torch.cat(starts)
    assert len(starts.unique(dim=0)) == len(starts) == 9


def test_random_state_of_numpy_is_unchanged():
    import numpy as np

    env = build()
    before = np.random.get_state()[1].tolist()
    env.rollout(5)
    assert np.random.get_state()[1].tolist() == before


# Races.


@pytest.mark.parametrize("race", RACES)
def test_race_teams(race):
    units = {
        "protoss": ["stalker", "zealot", "colossus"],
        "terran": ["marine", "marauder", "medivac"],
        "zerg": ["zergling", "baneling", "hydralisk"],
    }[race]
    weights = [0.45, 0.1, 0.45] if race == "zerg" else [0.45, 0.45, 0.1]
    battle = make_battle(f"{race}_5_vs_5", {})
    assert battle.unit_type_names == units
    keys = jax.random.split(jax.random.key(0), 1000)
    types = jax.vmap(battle.unit_type_generator.generate)(keys)  # [1000, 10]
    assert (types[:, :5] == types[:, 5:]).all()
    shares = jnp.bincount(types.flatten(), length=3) / types.size
    assert shares.tolist() == pytest.approx(weights, abs=0.03)


def test_units_of_races_equal_smax():
    ours, theirs = make_battle("terran_5_vs_5", {}), make_battle("smacv2_5_units", {})
    for stat in ("velocities", "attacks", "attack_ranges", "sight_ranges", "health"):
        mine, all_units = (getattr(x, f"unit_type_{stat}") for x in (ours, theirs))
        assert mine[:2].tolist() == all_units[:2].tolist()  # marine, marauder


def test_no_team_of_exceptions_only():
    teams = WeightedTeams((0.1, 0.9), (False, True), 2, 3)
    types = jax.vmap(teams.generate)(jax.random.split(jax.random.key(0), 500))
    allies, enemies = types[:, :2], types[:, 2:]
    assert (allies == 0).any(1).all()
    assert (allies == 1).any()
    assert (allies == enemies[:, :2]).all()
    assert enemies.shape == (500, 3)


def test_medivacs_cannot_attack():
    data = play(make_env("smax/terran_5_vs_5", num_envs=NUM_ENVS, seed=0), 60)
    medivac = data["state"][..., -10:-5] == 2
    attacks = data["agents", "action_mask"][..., STOP + 1 :]
    assert medivac.any()
    assert not attacks[medivac].any()
    assert attacks[~medivac].any()


# Transforms, collectors, errors.


def test_transforms_and_collectors():
    env = TransformedEnv(build(), StepCounter())
    check_env_specs(env)
    collector = Collector(env, env.rand_action, frames_per_batch=60, total_frames=120)
    for batch in collector:
        assert batch.shape == (NUM_ENVS, 10)
    collector.shutdown()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smax/smacv2_5_unit", {}, "did you mean 'smax/smacv2_5_units'"),
        (NAME, {"see_enemy_action": True}, "'see_enemy_action'; did you mean 'see_enemy_actions'"),
        (NAME, {"unit_type_health": 3}, "unknown option of SMAX 'unit_type_health'"),
        (NAME, {"max_steps": 0}, "`max_steps` >= 1, got 0"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_env(name, **options)


def test_unknown_scenarios():
    with pytest.raises(ValueError, match="unknown scenario of SMAX 'terran_0_vs_5'"):
        make_battle("terran_0_vs_5", {})


def test_a_device_that_jax_does_not_have():
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("JAX has a GPU here")
    with pytest.raises(
        RuntimeError, match=r"JAX has no device 'cuda'.*pip install \"jax\[cuda12\]"
    ):
        build(device="cuda")


def test_without_jaxmarl(monkeypatch):
    monkeypatch.setattr("torchrl_agentmixer.envs.optional.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "torchrl_agentmixer\[smax\]"'):
        build()
    assert not any(name.startswith("smax") for name in available_envs())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    try:
        jax.devices("cuda")
    except RuntimeError:
        pytest.skip('needs: pip install "jax[cuda12]"')
    env = build(device="cuda")
    check_env_specs(env)
    rollout = env.rollout(30, break_when_any_done=False)
    assert rollout["state"].device.type == "cuda"
    env.render()
