"""SMAX's battles by name: JaxMARL's own, and teams of a race like those of SMACv2."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torchrl_agentmixer._choices import unknown_name
from torchrl_agentmixer.envs.smacv2 import capability_config

# Scenarios that JaxMARL has.
SCENARIOS = (
    *("smacv2_5_units", "smacv2_10_units", "smacv2_20_units"),
    *("3m", "8m", "25m", "5m_vs_6m", "10m_vs_11m", "27m_vs_30m"),
    *("2s3z", "3s5z", "3s5z_vs_3s6z", "3s_vs_5z", "6h_vs_8z"),
)
RACES = ("protoss", "terran", "zerg")
# Options of JaxMARL's classes that the scenario or the environment decides.
_OWN_OPTIONS = {
    *("env_kwargs", "num_allies", "num_enemies", "scenario", "max_steps", "action_type"),
    *("smacv2_position_generation", "smacv2_unit_type_generation", "use_self_play_reward"),
}
_STATS = (
    *("velocities", "attacks", "attack_ranges", "sight_ranges"),
    *("radiuses", "health", "weapon_cooldowns"),
)
# Units that SMAX has not, as far as those numbers go. Values: https://liquipedia.net/starcraft2
# (Legacy of the Void, speed "faster"); as in SMAX, shields are health, bonus damage against kinds
# of armor is left out, and range 2 is that of all melee units.
_MORE_UNITS: dict[str, tuple[float, ...]] = {
    "colossus": (3.15, 20.0, 7.0, 10.0, 1.0, 350.0, 1.07),
    "medivac": (3.5, 0.0, 0.0, 11.0, 0.75, 150.0, 1.0),  # range 0: it has nobody to attack
    "baneling": (3.5, 16.0, 2.0, 8.0, 0.375, 30.0, 0.59),
}


def race_of(scenario: str) -> tuple[str, int, int] | None:
    """Race, units and enemies of ``"{race}_{units}_vs_{enemies}"``; ``None`` for other names.

    Examples:
        >>> race_of("zerg_5_vs_6"), race_of("5m_vs_6m")
        (('zerg', 5, 6), None)
    """
    match = re.fullmatch(rf"({'|'.join(RACES)})_([1-9]\d*)_vs_([1-9]\d*)", scenario)
    return (match[1], int(match[2]), int(match[3])) if match else None


def make_battle(scenario: str, options: dict[str, Any]) -> Any:
    """JaxMARL's ``HeuristicEnemySMAX`` of a scenario, without a time limit.

    Args:
        scenario (str): one of :data:`SCENARIOS`, another one that JaxMARL knows, or
            ``"{race}_{units}_vs_{enemies}"``.
        options (dict): of ``SMAX`` and ``HeuristicEnemySMAX``, such as ``see_enemy_actions``.

    Raises:
        ValueError: for an unknown scenario or option; the message names the nearest one.
    """
    with _quiet_import():
        from jaxmarl.environments.smax import HeuristicEnemySMAX, Scenario, smax_env
    import jax.numpy as jnp

    parameters = inspect.signature(smax_env.SMAX).parameters
    known = {*parameters, *inspect.signature(HeuristicEnemySMAX).parameters} - _OWN_OPTIONS
    known = {name for name in known if not name.startswith("unit_type_")}
    for option in options:
        if option not in known:
            raise ValueError(unknown_name("option of SMAX", option, known))
    options = options | {"max_steps": 2**30}  # its own limit comes a step late, and unmarked
    if (race := race_of(scenario)) is None:
        maps = smax_env.MAP_NAME_TO_SCENARIO
        if scenario not in maps:
            names = {*maps, *(f"{race}_{n}_vs_{n}" for race in RACES for n in (5, 10))}
            raise ValueError(unknown_name("scenario of SMAX", scenario, names))
        return HeuristicEnemySMAX(scenario=maps[scenario], **options)

    name, n_units, n_enemies = race
    team = capability_config(name, n_units, n_enemies)["team_gen"]
    units = team["unit_types"]
    stats = {stat: parameters[f"unit_type_{stat}"].default for stat in _STATS}
    rows = dict(_MORE_UNITS)
    for i, unit in enumerate(parameters["unit_type_names"].default):
        rows[unit] = tuple(float(stats[stat][i]) for stat in _STATS)
    columns = zip(*(rows[unit] for unit in units), strict=True)
    battle: Any = HeuristicEnemySMAX(
        scenario=Scenario(
            jnp.zeros(n_units + n_enemies, dtype=jnp.uint8), n_units, n_enemies, True, True
        ),
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
    """SMACv2's draw of unit types: by weight, the same for both teams, never exceptions alone.

    Args:
        weights: chance of each unit type.
        exceptions: unit types of which alone a team is never made.
        n_units: units of the team.
        n_enemies: units against it; the first ones as in the team.
    """

    weights: tuple[float, ...]
    exceptions: tuple[bool, ...]
    n_units: int
    n_enemies: int

    def generate(self, key: Any) -> Any:
        """Unit types of team and enemies, ``[n_units + n_enemies]``, uint8."""
        import jax
        import jax.numpy as jnp

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
    """Import JaxMARL, which prints, and leaves ``sys.stdout`` and ``sys.stderr`` exchanged."""
    streams = sys.stdout, sys.stderr, sys.__stdout__
    with open(os.devnull, "w") as nothing:
        sys.stdout = sys.__stdout__ = nothing  # type: ignore[misc]
        try:
            yield
        finally:
            sys.stdout, sys.stderr, sys.__stdout__ = streams  # type: ignore[misc]
