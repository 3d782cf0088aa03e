"""SMAX scenarios by name: JaxMARL's, and teams of one race as in SMACv2."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from torchrl_agentmixer._choices import check_known
from torchrl_agentmixer.envs.scenarios import RACE_SCENARIOS, capability_config, race_of

# Options of JaxMARL's classes that the scenario or the environment sets.
_OWN_OPTIONS = {
    *("env_kwargs", "num_allies", "num_enemies", "scenario", "max_steps", "action_type"),
    *("smacv2_position_generation", "smacv2_unit_type_generation", "use_self_play_reward"),
}
_STATS = (
    *("velocities", "attacks", "attack_ranges", "sight_ranges"),
    *("radiuses", "health", "weapon_cooldowns"),
)
# Statistics of units that SMAX lacks. Values: https://liquipedia.net/starcraft2 (Legacy of the
# Void, speed "faster"); as in SMAX, shields count as health, bonus damage is ignored, and melee
# units have range 2.
_MORE_UNITS: dict[str, tuple[float, ...]] = {
    "colossus": (3.15, 20.0, 7.0, 10.0, 1.0, 350.0, 1.07),
    "medivac": (3.5, 0.0, 0.0, 11.0, 0.75, 150.0, 1.0),  # range 0: it cannot attack
    "baneling": (3.5, 16.0, 2.0, 8.0, 0.375, 30.0, 0.59),
}


def make_battle(scenario: str, options: dict[str, Any]) -> Any:
    """JaxMARL's ``HeuristicEnemySMAX`` of a scenario, without a time limit.

    A ValueError for an unknown scenario or option names the nearest match.
    """
    with _quiet_import():
        from jaxmarl.environments.smax import HeuristicEnemySMAX, smax_env

    parameters = inspect.signature(smax_env.SMAX).parameters
    known = {*parameters, *inspect.signature(HeuristicEnemySMAX).parameters} - _OWN_OPTIONS
    known = {name for name in known if not name.startswith("unit_type_")}
    check_known("option of SMAX", options, known)
    options = options | {"max_steps": 2**30}  # its time limit is a step late, and not a truncation
    if race := race_of(scenario):
        return _race_battle(*race, options, parameters)
    maps = smax_env.MAP_NAME_TO_SCENARIO
    check_known("scenario of SMAX", [scenario], {*maps, *RACE_SCENARIOS})
    return HeuristicEnemySMAX(scenario=maps[scenario], **options)


def _race_battle(
    race: str, n_units: int, n_enemies: int, options: dict[str, Any], parameters: Any
) -> Any:
    from jaxmarl.environments.smax import HeuristicEnemySMAX, Scenario

    team = capability_config(race, n_units, n_enemies)["team_gen"]
    units = team["unit_types"]
    stats = {stat: parameters[f"unit_type_{stat}"].default for stat in _STATS}
    rows = dict(_MORE_UNITS)
    for i, unit in enumerate(parameters["unit_type_names"].default):
        rows[unit] = tuple(float(stats[stat][i]) for stat in _STATS)
    columns = zip(*(rows[unit] for unit in units), strict=True)
    types = jnp.zeros(n_units + n_enemies, dtype=jnp.uint8)  # replaced by the generator's
    battle: Any = HeuristicEnemySMAX(
        scenario=Scenario(types, n_units, n_enemies, True, True),
        unit_type_names=units,
        unit_type_shorthands=[unit[:2] for unit in units],
        **{f"unit_type_{s}": jnp.array(c) for s, c in zip(_STATS, columns, strict=True)},
        **options,
    )
    exceptions = tuple(unit in team.get("exception_unit_types", ()) for unit in units)
    weights = tuple(team["weights"])
    battle._env.unit_type_generator = WeightedTeams(weights, exceptions, n_units, n_enemies)
    return battle


@dataclass(frozen=True)
class WeightedTeams:
    """Random unit types as in SMACv2: weighted, the same for both teams, not only exceptions."""

    weights: tuple[float, ...]  # per unit type
    exceptions: tuple[bool, ...]  # unit types of which a team cannot consist alone
    n_units: int
    n_enemies: int

    def generate(self, key: Any) -> Any:
        """Unit types of team and enemies, ``[n_units + n_enemies]``, uint8."""
        logits, exceptions = jnp.log(jnp.array(self.weights)), jnp.array(self.exceptions)
        size = (max(self.n_units, self.n_enemies),)

        def draw(carry: Any) -> Any:
            next_key, draw_key = jax.random.split(carry[0])
            return next_key, jax.random.categorical(draw_key, logits, shape=size)

        def only_exceptions(carry: Any) -> Any:
            return exceptions[carry[1][: self.n_units]].all()

        _, types = jax.lax.while_loop(only_exceptions, draw, draw((key, None)))
        return jnp.concatenate([types[: self.n_units], types[: self.n_enemies]]).astype(jnp.uint8)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Import JaxMARL, which prints and replaces ``sys.stdout`` and ``sys.stderr``, silently."""
    streams = sys.stdout, sys.stderr, sys.__stdout__
    with open(os.devnull, "w") as nothing:
        sys.stdout = sys.__stdout__ = nothing  # type: ignore[misc]
        try:
            yield
        finally:
            sys.stdout, sys.stderr, sys.__stdout__ = streams  # type: ignore[misc]
