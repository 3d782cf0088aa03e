"""Measures of the trained and the deployed policy: consistency, and distance to an equilibrium."""

from __future__ import annotations

from typing import Any

from torchrl_agentmixer.diagnostics.consistency import (
    consistency_metrics,
    mode_agreement,
    team_divergence,
)
from torchrl_agentmixer.diagnostics.equilibrium import (
    EquilibriumGap,
    coarse_correlated_equilibrium_gap,
    correlated_equilibrium_gap,
    joint_action_probs,
    nash_gap,
)
from torchrl_agentmixer.diagnostics.identifiability import identifiability_gap

__all__ = [
    "BestResponseGap",
    "EquilibriumGap",
    "best_response_gap",
    "coarse_correlated_equilibrium_gap",
    "consistency_metrics",
    "correlated_equilibrium_gap",
    "identifiability_gap",
    "joint_action_probs",
    "mode_agreement",
    "nash_gap",
    "team_divergence",
]


def __getattr__(name: str) -> Any:
    """Import what trains deviators only when it is asked for: algorithms import this package."""
    if name in ("BestResponseGap", "best_response_gap"):
        from torchrl_agentmixer.diagnostics import exploitability

        return getattr(exploitability, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
