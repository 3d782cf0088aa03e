"""Scenarios of SMACv2 and SMAX: names, and random teams of one race."""

from __future__ import annotations

import re
from typing import Any

# Unit types and their probabilities; no team consists of exception units only.
_TEAMS: dict[str, dict[str, list]] = {
    "protoss": {"unit_types": ["stalker", "zealot", "colossus"], "weights": [0.45, 0.45, 0.1]},
    "terran": {
        "unit_types": ["marine", "marauder", "medivac"],
        "weights": [0.45, 0.45, 0.1],
        "exception_unit_types": ["medivac"],
    },
    "zerg": {
        "unit_types": ["zergling", "baneling", "hydralisk"],
        "weights": [0.45, 0.1, 0.45],
        "exception_unit_types": ["baneling"],
    },
}
RACES = tuple(_TEAMS)
# Race scenarios that are in the registry.
RACE_SCENARIOS = tuple(f"{race}_{n}_vs_{n}" for race in RACES for n in (5, 10))
# JaxMARL's scenarios.
SMAX_SCENARIOS = (
    *("smacv2_5_units", "smacv2_10_units", "smacv2_20_units"),
    *("3m", "8m", "25m", "5m_vs_6m", "10m_vs_11m", "27m_vs_30m"),
    *("2s3z", "3s5z", "3s5z_vs_3s6z", "3s_vs_5z", "6h_vs_8z"),
)


def race_of(scenario: str) -> tuple[str, int, int] | None:
    """Race, units and enemies of ``"{race}_{units}_vs_{enemies}"``; ``None`` for other names.

    Examples:
        >>> race_of("zerg_5_vs_6"), race_of("5m_vs_6m")
        (('zerg', 5, 6), None)
    """
    match = re.fullmatch(rf"({'|'.join(RACES)})_([1-9]\d*)_vs_([1-9]\d*)", scenario)
    return (match[1], int(match[2]), int(match[3])) if match else None


def capability_config(race: str, n_units: int, n_enemies: int) -> dict[str, Any]:
    """The benchmark's distributions of teams and starting positions, sampled per episode."""
    starts = {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32}
    return {
        "n_units": n_units,
        "n_enemies": n_enemies,
        "team_gen": {"dist_type": "weighted_teams", "observe": True, **_TEAMS[race]},
        "start_positions": starts,
    }
