"""Observation normalization: values, sharing, saving and loading of statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import RewardSum, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_agentmixer import AgentMixerPolicy
from torchrl_agentmixer.envs import (
    MatrixGameEnv,
    ObservationNormalizer,
    load_simulation_state,
    make_env,
    normalize_observations,
    observation_normalizer,
    simulation_state,
)
from torchrl_agentmixer.export import agent_actors

OBSERVATION = ("agents", "observation")


def _raw(num_envs=4, seed=0, **options):
    return make_env("grid/predator_prey", num_envs=num_envs, seed=seed, **options)


def _count(env) -> int:
    return int(observation_normalizer(env).statistics["count", "state"])


def test_mean_and_deviation_of_all_steps_so_far():
    raw, normalized = _raw(), normalize_observations(_raw())
    check_env_specs(normalized)
    normalized = normalize_observations(_raw())
    rows = {OBSERVATION: [], "state": []}
    data, other = raw.reset(), normalized.reset()
    for _ in range(6):
        for key, seen in rows.items():
            seen.append(data[key].double().numpy())
            all_rows = np.concatenate(seen)  # [envs * steps, ...]
            scale = np.maximum(all_rows.std(0), 1e-4)
            expected = (seen[-1] - all_rows.mean(0)) / scale
            # Entries with little variance have large rounding errors in float32.
            wide = np.broadcast_to(all_rows.std(0) > 1e-2, expected.shape)
            np.testing.assert_allclose(other[key].numpy()[wide], expected[wide], atol=2e-3)
        assert len(rows["state"]) == 1 or wide.any()
        action = raw.rand_action(data.clone()).select(("agents", "action"))
        data, other = (
            env.step(td.update(action))["next"] for env, td in ((raw, data), (normalized, other))
        )


@pytest.mark.parametrize("name", ["mamujoco/humanoid_9_8", "vmas/predator_prey"])
def test_every_group_and_the_state(name):
    env = normalize_observations(make_env(name, num_envs=2, seed=0))
    check_env_specs(env)
    env.rollout(30, break_when_any_done=False)
    for group in env.group_map:
        loc, scale, bound = observation_normalizer(env).loc_scale_bound()[group]
        assert loc.shape == scale.shape == env.observation_spec[group, "observation"].shape[1:]
        assert (loc != 0).any()
        assert (scale > 0).all()
        assert bound == 10.0


def test_evaluation_shares_the_statistics_and_does_not_update_them():
    """Also through further transforms, with current statistics."""
    env = normalize_observations(_raw())
    evaluation = normalize_observations(_raw(num_envs=2), like=env)
    training = TransformedEnv(env, StepCounter())
    training = TransformedEnv(training, RewardSum(in_keys=["reward"]))
    evaluation = TransformedEnv(evaluation, StepCounter())
    for steps in (5, 9):
        training.rollout(steps)
        before = _count(training)
        raw = _raw(num_envs=2)
        evaluation.set_seed(3)
        raw.set_seed(3)
        norm = observation_normalizer(training)
        expected = (raw.reset()["state"] - norm.loc["state"]) / norm.scale["state"]
        torch.testing.assert_close(evaluation.reset()["state"], expected.clamp(-10, 10))
        evaluation.rollout(5)
        assert _count(training) == _count(evaluation) == _count(env) == before > 0


def test_loading_updates_all_environments_that_share_statistics(tmp_path):
    env = normalize_observations(_raw())
    training = TransformedEnv(env, RewardSum(in_keys=["reward"]))
    evaluation = normalize_observations(_raw(num_envs=2), like=training)
    training.rollout(5)
    torch.save(simulation_state(training), tmp_path / "state.pt")
    count, loc = _count(training), observation_normalizer(training).loc["state"].clone()
    training.rollout(5)
    assert _count(training) != count
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert load_simulation_state(training, saved)
    assert _count(training) == _count(evaluation) == count
    assert torch.equal(observation_normalizer(evaluation).loc["state"], loc)


def test_statistics_are_saved_if_the_simulation_state_is_unavailable():
    def build():
        serial = SerialEnv(2, [lambda: _raw(num_envs=1)] * 2)
        return normalize_observations(_Grouped(serial))

    env = build()
    env.rollout(5)
    other = build()
    assert not load_simulation_state(other, simulation_state(env))
    assert _count(other) == _count(env) > 0


class _Grouped(TransformedEnv):
    """Batches of workers have no ``group_map``."""

    group_map = {"agents": ["agent_0", "agent_1"]}  # noqa: RUF012


def test_saved_statistics_are_not_updated():
    env = normalize_observations(_raw())
    env.rollout(5)
    saved = observation_normalizer(env).state_dict()
    other = normalize_observations(_raw(seed=0), like=saved)
    other.rollout(5)
    assert _count(other) == _count(env)


def test_large_constants_give_no_nan():
    """Their variance in VecNormV2 is negative by rounding."""
    normalizer = ObservationNormalizer(["x"])
    for _ in range(300):
        data = TensorDict({"x": torch.full((16, 1), 123.4)}, [16])
        normalizer._step(data, data)
        assert data["x"].abs().max() < 1
    assert (normalizer.scale["x"] > 0).all()


def test_bad_input():
    with pytest.raises(ValueError, match="got PredatorPreyGridEnv without an ObservationNormal"):
        normalize_observations(_raw(), like=_raw())
    env = normalize_observations(_raw())
    env.rollout(2)
    saved = observation_normalizer(env).state_dict()
    with pytest.raises(ValueError, match="of the same sizes"):
        normalize_observations(make_env("matrix/climbing"), like=saved)


@pytest.mark.parametrize("bound", [10.0, 3.0])
def test_an_entry_that_was_constant_so_far_is_bounded(bound):
    """Its scale is 1e-4: a move by 1 would be 10,000."""
    options = {} if bound == 10.0 else {"bound": bound}
    env = normalize_observations(MatrixGameEnv(torch.eye(2), num_envs=4), **options)
    env.rollout(3, break_when_any_done=False)
    evaluation = normalize_observations(MatrixGameEnv(torch.eye(2), num_envs=4), like=env)
    for one in (env, evaluation):
        agents = {"observation": torch.full((4, 2, 1), 2.0)}
        data = TensorDict({"agents": agents, "state": torch.zeros(4, 1)}, [4])
        normal = observation_normalizer(one).freeze()._stateful_norm(data)
        assert (normal["agents", "observation"] == bound).all()
        assert (normal["state"] == -bound).all()
    loc, scale, got = observation_normalizer(env).loc_scale_bound()["agents"]
    assert got == bound
    policy = AgentMixerPolicy.from_env(env).decentralized()
    for actor in agent_actors(policy, {"agents": (loc, scale, got)}):
        assert (actor.normalize(torch.full((4, 1), 2.0)) == bound).all()
        assert (actor.normalize(torch.zeros(4, 1)) == -bound).all()


@pytest.mark.parametrize("bound", [0.0, -1.0])
def test_a_bound_is_positive(bound):
    with pytest.raises(ValueError, match="`bound` > 0"):
        normalize_observations(_raw(), bound=bound)
