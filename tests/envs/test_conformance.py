"""Conformance tests that every environment passes."""

from __future__ import annotations

from collections.abc import Callable
from ctypes.util import find_library

import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, RewardSum, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_agentmixer.envs import MatrixGameEnv, PredatorPreyGridEnv, make_env
from torchrl_agentmixer.envs.simulation import load_simulation_state, simulation_state

NUM_ENVS = 6
Build = Callable[..., EnvBase]


def _payoff(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _named(name: str, **options) -> Build:
    return lambda **kwargs: make_env(name, **{**options, **kwargs})


BUILDERS: dict[str, Build] = {
    "continuous/penalty": _named("continuous/penalty"),
    "continuous/two_quadratics": _named("continuous/two_quadratics", n_agents=3, action_dim=2),
    "matrix/climbing": _named("matrix/climbing"),
    "matrix/climbing stochastic": _named("matrix/climbing", stochastic="full"),
    "matrix/penalty": _named("matrix/penalty", k=-100.0),
    "matrix/stag_hunt": _named("matrix/stag_hunt"),
    "matrix four agents": lambda **kwargs: MatrixGameEnv(_payoff(3, 3, 3, 3), **kwargs),
    "matrix masked": lambda **kwargs: MatrixGameEnv(_payoff(2, 4, 3), **kwargs),
    "grid/bridge_crossing": _named("grid/bridge_crossing"),
    "grid/predator_prey": _named("grid/predator_prey", penalty=-1.0),
    "grid crowded": lambda **kwargs: PredatorPreyGridEnv(
        **{"grid_size": 4, "n_predators": 3, "n_prey": 2, "view": 3, **kwargs}
    ),
    "mamujoco/ant_4x2": _named("mamujoco/ant_4x2"),
    "mamujoco/humanoid_9_8": _named("mamujoco/humanoid_9_8"),  # two groups
    "mamujoco/pusher_3p": _named("mamujoco/pusher_3p"),  # three groups
    "memory/recall": _named("memory/recall"),
    "vmas/predator_prey": _named("vmas/predator_prey", penalty=-1.0),
    "vmas no respawn": _named("vmas/predator_prey", respawn=False, catch_radius=1.5),
    "vmas/balance": _named("vmas/balance", max_steps=100),
    "vmas/give_way": _named("vmas/give_way"),
    "vmas/passage": _named("vmas/passage"),
    "vmas/simple_tag": _named("vmas/simple_tag", max_steps=100, reward="mean"),  # two groups
    "vmas discrete": _named("vmas/predator_prey", continuous_actions=False),
}
ONE_SHOT = [name for name in BUILDERS if name.startswith(("matrix", "continuous"))]
STOCHASTIC = [name for name in BUILDERS if name not in ONE_SHOT]
every_env = pytest.mark.parametrize("name", list(BUILDERS))
stochastic_env = pytest.mark.parametrize("name", STOCHASTIC)


def _actions(env: EnvBase, steps: int, seed: int = 0) -> list[TensorDictBase]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [env.full_action_spec.rand() for _ in range(steps)]


def _play(env: EnvBase, steps: int, seed: int = 0) -> TensorDictBase:
    """Rollout of random actions with automatic resets, ``[steps, num_envs]``."""
    data, history = env.reset(), []
    for action in _actions(env, steps, seed):
        torch.rand(3)  # the global generator must not change the environment
        stepped, data = env.step_and_maybe_reset(data.update(action))
        history.append(stepped.clone())
    return torch.stack(history)


def _same(a: TensorDictBase, b: TensorDictBase) -> bool:
    return bool((a == b).all())


@every_env
def test_specs(name):
    check_env_specs(BUILDERS[name](num_envs=NUM_ENVS, seed=0))


@every_env
def test_layout(name):
    env = BUILDERS[name](num_envs=NUM_ENVS, seed=0)
    rollout = env.rollout(1)
    after = rollout["next"]
    assert env.batch_size == (NUM_ENVS,)
    assert env.n_agents == sum(len(agents) for agents in env.group_map.values())
    assert rollout["state"].shape[:2] == (NUM_ENVS, 1)
    assert rollout["state"].dtype == torch.float32
    assert env.observation_spec["state"].shape == (NUM_ENVS, rollout["state"].shape[-1])
    assert after["reward"].shape == (NUM_ENVS, 1, 1)
    assert after["reward"].dtype == torch.float32
    for key in ("done", "terminated", "truncated"):
        assert after[key].shape == (NUM_ENVS, 1, 1)
        assert after[key].dtype == torch.bool
    for group, agents in env.group_map.items():
        assert rollout[group].batch_size == (NUM_ENVS, 1, len(agents))
        assert rollout[group, "observation"].dtype == torch.float32
        assert "reward" not in after[group].keys()  # noqa: SIM118
        assert "info" not in after[group].keys()  # noqa: SIM118
    assert rollout.device == env.device == torch.device("cpu")
    if not any(task in name for task in ("tag", "humanoid", "pusher")):
        assert env.group_map == {"agents": [f"agent_{i}" for i in range(env.n_agents)]}


@every_env
def test_batch_of_one(name):
    assert BUILDERS[name](num_envs=1).rollout(3).shape[0] == 1


@every_env
def test_same_seed_same_trajectories(name):
    first = BUILDERS[name](num_envs=NUM_ENVS, seed=3)
    second = BUILDERS[name](num_envs=NUM_ENVS, seed=4)
    played = _play(first, 40)
    second.set_seed(3)
    torch.rand(7)
    assert _same(played, _play(second, 40))
    first.set_seed(3)
    assert _same(played, _play(first, 40))


@stochastic_env
def test_different_seeds_differ(name):
    first, second = (BUILDERS[name](num_envs=NUM_ENVS, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.reset()["state"], second.reset()["state"])
    unseeded = [BUILDERS[name](num_envs=NUM_ENVS).reset()["state"] for _ in range(2)]
    assert not torch.equal(*unseeded)


@stochastic_env
def test_environments_in_a_batch_differ(name):
    if name == "vmas/give_way":
        pytest.skip("VMAS draws one start per reset of the batch")
    state = BUILDERS[name](num_envs=NUM_ENVS, seed=0).reset()["state"]
    assert len(state.unique(dim=0)) > 1


@stochastic_env
def test_environments_are_independent(name):
    alone = _play(BUILDERS[name](num_envs=NUM_ENVS, seed=5), 10)
    env, other = (BUILDERS[name](num_envs=NUM_ENVS, seed=seed) for seed in (5, 6))
    data, history = env.reset(), []
    for action in _actions(env, 10):
        other.rollout(2)
        stepped, data = env.step_and_maybe_reset(data.update(action))
        history.append(stepped.clone())
    assert _same(alone, torch.stack(history))


@every_env
def test_global_random_state_is_unchanged(name):
    env = BUILDERS[name](num_envs=NUM_ENVS, seed=0)
    data = env.reset().update(_actions(env, 1)[0])
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    env.set_seed(7)
    env.reset()
    env.step(data)
    assert torch.equal(torch.rand(3), expected)


@every_env
def test_partial_reset_keeps_other_environments(name):
    env = BUILDERS[name](num_envs=NUM_ENVS, seed=0)
    data = env.reset()
    for action in _actions(env, 3):
        data = env.step(data.update(action))["next"]
    mask = torch.tensor([True, False, False, True, False, True])
    before = data.clone()
    after = env.reset(data.clone().set("_reset", mask[:, None]))
    keys = ["state", *((group, "observation") for group in env.group_map)]
    for key in keys:
        assert torch.equal(after[key][~mask], before[key][~mask])
        if name in STOCHASTIC:
            assert not torch.equal(after[key][mask], before[key][mask])
    assert not after["done"][mask].any()
    # Also the simulation itself, not only its outputs.
    twin = BUILDERS[name](num_envs=NUM_ENVS, seed=0)
    data = twin.reset()
    for action in _actions(twin, 3):
        data = twin.step(data.update(action))["next"]
    action = _actions(env, 1, seed=9)[0]
    stepped, expected = (e.step(d.update(action)) for e, d in ((env, after), (twin, data)))
    for key in ("terminated", "truncated"):
        assert torch.equal(stepped["next", key][~mask], expected["next", key][~mask])
    own = (next(iter(env.group_map)), "observation")  # the own position, which is not random
    assert torch.equal(stepped["next", own][~mask, :, :2], expected["next", own][~mask, :, :2])


# Episodes of memory/recall have a fixed length and no time limit.
@pytest.mark.parametrize("name", [n for n in STOCHASTIC if not n.startswith("memory")])
def test_time_limits_truncate_and_ends_terminate(name):
    limit = 7
    env = BUILDERS[name](num_envs=NUM_ENVS, seed=0, max_steps=limit)
    after = _play(env, 60)["next"]
    terminated, truncated, done = (after[k][..., 0] for k in ("terminated", "truncated", "done"))
    assert torch.equal(done, terminated | truncated)
    steps = torch.zeros(NUM_ENVS, dtype=torch.int64)
    for t in range(len(done)):
        steps += 1
        assert torch.equal(truncated[t], (steps == limit) & ~terminated[t])
        steps[done[t]] = 0
    assert truncated.any()
    if name == "vmas no respawn":
        assert terminated.any()


@pytest.mark.parametrize("name", ONE_SHOT)
def test_one_shot_games_terminate_at_once(name):
    after = BUILDERS[name](num_envs=NUM_ENVS).rollout(1)["next"]
    assert after["terminated"].all()
    assert not after["truncated"].any()


@every_env
def test_two_hundred_random_steps(name):
    env = BUILDERS[name](num_envs=NUM_ENVS, seed=1)
    played = _play(env, 200)
    for key, value in played.items(include_nested=True, leaves_only=True):
        assert torch.isfinite(value.float()).all(), key
    for step in played[::50]:
        assert env.observation_spec.is_in(step["next"].select(*env.observation_spec.keys()))


@every_env
def test_outputs_are_not_overwritten(name):
    env = BUILDERS[name](num_envs=NUM_ENVS, seed=2)
    data = env.reset()
    kept, copies = [data], [data.clone()]
    for action in _actions(env, 3):
        data = env.step(data.clone().update(action))["next"]
        kept.append(data)
        copies.append(data.clone())
    env.reset()
    assert all(_same(a, b) for a, b in zip(kept, copies, strict=True))


@every_env
def test_resume_from_a_simulation_state(name, tmp_path):
    env = BUILDERS[name](num_envs=NUM_ENVS, seed=0)
    data = _play(env, 7)[-1]
    torch.save(simulation_state(env), tmp_path / "state.pt")
    expected = _continue(env, data, 60)

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other = BUILDERS[name](num_envs=NUM_ENVS, seed=1)
    _play(other, 3, seed=2)
    load_simulation_state(other, saved)
    assert _same(_continue(other, data, 60), expected)
    # Stepping does not change the state that was loaded.
    load_simulation_state(env, saved)
    assert _same(_continue(env, data, 60), expected)


def _continue(env: EnvBase, stepped: TensorDictBase, steps: int) -> TensorDictBase:
    """Rollout of random actions after a step, with automatic resets, ``[steps, num_envs]``."""
    data, history = env.step_mdp(stepped.clone()), []
    data = env.maybe_reset(data)
    for action in _actions(env, steps, seed=3):
        stepped, data = env.step_and_maybe_reset(data.update(action))
        history.append(stepped.clone())
    return torch.stack(history)


@every_env
def test_simulation_state_of_another_batch_size(name):
    state = simulation_state(BUILDERS[name](num_envs=NUM_ENVS))
    with pytest.raises(ValueError, match="simulation state"):
        load_simulation_state(BUILDERS[name](num_envs=NUM_ENVS + 1), state)


@every_env
def test_render(name):
    if name.startswith("mamujoco") and not (find_library("EGL") or find_library("OSMesa")):
        pytest.skip("MuJoCo draws with EGL or OSMesa, and this machine has neither")
    env = TransformedEnv(BUILDERS[name](num_envs=NUM_ENVS, seed=0), RewardSum(in_keys=["reward"]))
    data = env.reset()
    before = env.render(env_index=1)
    env.step(data.update(_actions(env, 1)[0]))
    after = env.render(env_index=1)
    assert before.dtype == np.uint8
    assert before.ndim == 3
    assert before.shape[-1] == 3
    assert min(before.shape[:2]) >= 80
    assert (before != 255).any()
    assert (before != after).any()


@every_env
@pytest.mark.parametrize("num_envs", [0, -1])
def test_num_envs_out_of_range(name, num_envs):
    with pytest.raises(ValueError, match=f"`num_envs` >= 1, got {num_envs}"):
        BUILDERS[name](num_envs=num_envs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_env
def test_on_a_gpu(name):
    env = BUILDERS[name](num_envs=NUM_ENVS, seed=0, device="cuda")
    check_env_specs(env)
    rollout = env.rollout(3)
    assert rollout["state"].device.type == "cuda"
    env.render()
