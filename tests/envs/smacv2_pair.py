"""The stand-in for SMACv2 and the real package, side by side in the same battles."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs.libs import smacv2 as torchrl_smacv2

from torchrl_agentmixer.envs import make_env

HERE = Path(__file__).parent
SOURCE = Path(os.environ.get("SMACV2_SOURCE", "")).resolve()
FOUND = "SMACV2_SOURCE" in os.environ and (SOURCE / "smacv2" / "env" / "__init__.py").is_file()
PATHS = {"real": str(SOURCE), "stand-in": str(HERE / "smacv2_stand_in")}
PACKAGES = ("smacv2", "pysc2", "s2clientprotocol")


class Packages:
    """Makes the real package or the stand-in importable as ``smacv2``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        unload(*PACKAGES)
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(torchrl_smacv2, "_has_smacv2", True)
        monkeypatch.syspath_prepend(str(HERE / "starcraft2_stand_in"))

    def load(self, package: str) -> ModuleType:
        unload("smacv2")
        self.monkeypatch.syspath_prepend(PATHS[package])
        return importlib.import_module("smacv2.env")


def unload(*packages: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def games(env) -> list:
    """The packages' games of an environment."""
    return [game._env for game in env.base_env._envs]


class Pair:
    """Two environments, which fight the same battles and are compared at each step.

    The battle takes place in the real package's game; the units of the stand-in's copy it.
    """

    def __init__(self, packages: Packages, name: str, **kwargs: Any) -> None:
        kwargs = {"seed": 0, "parallel": False, **kwargs}
        self.stand_in_package = packages.load("stand-in")
        self.stand_in = make_env(name, **kwargs)
        packages.load("real")
        self.real = make_env(name, **kwargs)
        self.results: dict[str, list] = {"real": [], "stand-in": []}
        self.last: dict[str, tuple] = {}  # what the packages' `step` returned last
        for game, other in zip(games(self.stand_in), games(self.real), strict=True):
            follow(game.env, other.env)
            record(game, self.results["stand-in"])
            record(other, self.results["real"])

    def reset(self) -> TensorDictBase:
        real, stand_in = self.real.reset(), self.stand_in.reset()
        assert_same(real, stand_in)
        for game, other in zip(games(self.real), games(self.stand_in), strict=True):
            assert_same_positions(game.env, other.env)
        return real

    def step(self, data: TensorDictBase) -> TensorDictBase:
        """One step with the actions of ``data``; returns the real package's, to be reset."""
        real, stand_in = self.real.step(data.clone()), self.stand_in.step(data.clone())
        assert_same(real["next"], stand_in["next"])
        assert_same_results(self.results["real"], self.results["stand-in"])
        for package, results in self.results.items():
            self.last[package] = results[-1]
            results.clear()
        for game, other in zip(games(self.real), games(self.stand_in), strict=True):
            for counter in ("battles_won", "battles_game", "timeouts", "force_restarts"):
                assert getattr(game.env, counter) == getattr(other.env, counter), counter
        return real

    def next(self, stepped: TensorDictBase) -> TensorDictBase:
        """The tensordict of the next step; ended episodes are reset, in both."""
        after = stepped["next"]
        data = self.real.maybe_reset(self.real.step_mdp(stepped))
        other = self.stand_in.maybe_reset(self.stand_in.step_mdp(stepped.clone()))
        if after["done"].any():
            assert_same(data, other)
        return data

    def close(self) -> None:
        self.real.close()
        self.stand_in.close()


def follow(stand_in, real) -> None:
    """Copy the units of the real package's game after its step."""

    def simulate(_actions) -> None:
        sides = (stand_in.agents, real.agents), (stand_in.enemies, real.enemies)
        for units, others in sides:
            for index, other in others.items():
                copy_unit(units[index], other)
        for index, other in real.agents.items():
            value = other.energy if stand_in.agents[index].kind == "medivac" else None
            value = other.weapon_cooldown if value is None else value
            stand_in.agents[index].cooldown = value / real.unit_max_cooldown(other)

    stand_in._simulate = simulate


def copy_unit(unit, other) -> None:
    assert (unit.health_max, unit.shield_max) == (other.health_max, other.shield_max)
    unit.place((other.pos.x, other.pos.y))
    unit.health = other.health
    unit.shield = other.shield if other.health > 0 else 0.0


def assert_same_positions(real, stand_in) -> None:
    sides = (real.agents, stand_in.agents), (real.enemies, stand_in.enemies)
    for units, others in sides:
        expected = [(unit.pos.x, unit.pos.y) for unit in units.values()]
        assert [tuple(unit.position) for unit in others.values()] == expected


def record(game, results: list) -> None:
    """Append what each step returns."""
    step = game.step

    def recorded(actions):
        results.append(step(actions))
        return results[-1]

    game.step = recorded


def assert_same(real: TensorDictBase, stand_in: TensorDictBase) -> None:
    keys = set(real.keys(True, True))
    assert keys == set(stand_in.keys(True, True))
    for key in keys:
        expected, found = real[key], stand_in[key]
        assert expected.dtype == found.dtype
        torch.testing.assert_close(
            found.float(), expected.float(), atol=2e-6, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )


def assert_same_results(real: list, stand_in: list) -> None:
    for (reward, over, info), (other_reward, other_over, other_info) in zip(
        real, stand_in, strict=True
    ):
        assert other_reward == pytest.approx(reward, abs=1e-6)
        assert (other_over, other_info) == (over, info)
        assert type(other_over) is type(over)
