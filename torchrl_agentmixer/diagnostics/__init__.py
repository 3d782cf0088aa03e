"""Diagnostics of trained policies: equilibrium gaps, best responses, identifiability."""

from __future__ import annotations

from torchrl_agentmixer.diagnostics.equilibrium import (
    EquilibriumGap,
    coarse_correlated_equilibrium_gap,
    correlated_equilibrium_gap,
    nash_gap,
)
from torchrl_agentmixer.diagnostics.exploitability import BestResponseGap, best_response_gap
from torchrl_agentmixer.diagnostics.identifiability import identifiability_gap
from torchrl_agentmixer.diagnostics.joint_actions import joint_action_probs

__all__ = [
    "BestResponseGap",
    "EquilibriumGap",
    "best_response_gap",
    "coarse_correlated_equilibrium_gap",
    "correlated_equilibrium_gap",
    "identifiability_gap",
    "joint_action_probs",
    "nash_gap",
]
