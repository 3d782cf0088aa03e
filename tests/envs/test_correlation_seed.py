"""The joint seed: when it is drawn, and for which environments."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_agentmixer.envs import CorrelationSeed, make_env


def _env(**options) -> TransformedEnv:
    base = make_env("grid/predator_prey", num_envs=4, max_steps=3, seed=0)
    return TransformedEnv(base, CorrelationSeed(8, **options))


@pytest.mark.parametrize("key", ["correlation_seed", ("team", "seed")])
@pytest.mark.parametrize("per", ["step", "episode"])
def test_specs(per, key):
    env = _env(per=per, out_key=key)
    check_env_specs(env)
    rollout = env.rollout(2)
    assert rollout[key].shape == (4, 2, 8)
    assert rollout["next", key].shape == (4, 2, 8)


def test_per_step_every_step_has_its_own():
    seeds = _env().rollout(6, break_when_any_done=False)["correlation_seed"]
    assert len(seeds.reshape(-1, 8).unique(dim=0)) == 4 * 6


def test_per_episode_it_changes_with_the_episode_only():
    rollout = _env(per="episode").rollout(6, break_when_any_done=False)
    seeds, done = rollout["correlation_seed"], rollout["next", "done"][:, :-1, 0]
    changed = (seeds[:, 1:] != seeds[:, :-1]).any(-1)
    assert torch.equal(changed, done)
    assert done.any()


def test_partial_reset_leaves_the_rest():
    env = _env(per="episode")
    data = env.reset()
    mask = torch.tensor([[True], [False], [True], [False]])
    after = env.reset(data.clone().set("_reset", mask))["correlation_seed"]
    assert torch.equal(after[~mask[:, 0]], data["correlation_seed"][~mask[:, 0]])
    assert (after[mask[:, 0]] != data["correlation_seed"][mask[:, 0]]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed_dim": 0}, "`seed_dim` >= 1, got 0"),
        ({"seed_dim": 2, "per": "batch"}, "'step' or 'episode', got 'batch'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CorrelationSeed(**options)
