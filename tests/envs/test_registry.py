"""Environments by name."""

from __future__ import annotations

import pytest
import torch

import torchrl_agentmixer.envs as envs
from torchrl_agentmixer.envs import MatrixGameEnv, available_envs, make_env, register_env, registry

NAMES = [
    "grid/bridge_crossing",
    "grid/predator_prey",
    "matrix/climbing",
    "matrix/penalty",
    "matrix/stag_hunt",
    "vmas/predator_prey",
]


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))


def test_available():
    names = available_envs()
    assert names == sorted(set(names))
    assert set(NAMES) <= set(names)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("matrix/climb", "matrix/climbing"),
        ("grid/predator_pray", "grid/predator_prey"),
        ("vmas/balanc", "vmas/balance"),
    ],
)
def test_unknown_names(name, nearest):
    if name.startswith("vmas"):
        pytest.importorskip("vmas")
    with pytest.raises(
        ValueError, match=f"'{name}'; did you mean '{nearest}'.*Available: continuous"
    ):
        make_env(name)


@pytest.mark.parametrize(
    ("name", "option", "accepted"),
    [
        ("matrix/penalty", "K", "k"),
        ("matrix/climbing", "k", "stochastic"),
        ("grid/bridge_crossing", "small_probs", "did you mean 'small_prob'.*max_steps"),
        ("grid/predator_prey", "penlty", "did you mean 'penalty'.*view"),
        ("vmas/predator_prey", "n_pray", "did you mean 'n_prey'.*view_radius"),
        ("vmas/balance", "n_agent", "not used by the scenario"),
    ],
)
def test_unknown_options(name, option, accepted):
    if name.startswith("vmas"):
        pytest.importorskip("vmas")
    with pytest.raises(ValueError, match=f"(?s){name}.*'{option}'.*{accepted}"):
        make_env(name, **{option: 3})


def test_options_reach_the_environment():
    assert make_env("grid/bridge_crossing", small_prob=0.6).small_prob == 0.6
    assert make_env("grid/predator_prey", n_predators=3).n_agents == 3
    assert make_env("matrix/penalty", k=-3.0).payoff.min() == -3


def test_register():
    seen = {}

    def build(**kwargs):
        seen.update(kwargs)
        return MatrixGameEnv(torch.eye(2), num_envs=kwargs["num_envs"])

    register_env("matrix/own", build)
    assert "matrix/own" in available_envs()
    assert make_env("matrix/own", num_envs=3, seed=4, extra=5).batch_size == (3,)
    assert seen == {"num_envs": 3, "device": None, "seed": 4, "extra": 5}
    with pytest.raises(ValueError, match="'matrix/own' exists already"):
        register_env("matrix/own", build)


def test_public_names_exist():
    pytest.importorskip("vmas")
    for name in envs.__all__:
        assert getattr(envs, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = envs.nothing
