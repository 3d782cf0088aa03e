"""Joint policies as distributions with Individual-Global-Consistency (IGC, Definition 6)."""

from __future__ import annotations

from torchrl_agentmixer.distributions.grouped import (
    GroupedDistribution,
    GroupedDistributionBuilder,
)
from torchrl_agentmixer.distributions.grouped_mixture import GroupedMixture, GroupedMixtureBuilder
from torchrl_agentmixer.distributions.grouped_normal_mixture import (
    GroupedNormalMixture,
    GroupedNormalMixtureBuilder,
)
from torchrl_agentmixer.distributions.igc_categorical import IGCCategorical, gumbel_perturbation
from torchrl_agentmixer.distributions.igc_mixture import IGCMixture
from torchrl_agentmixer.distributions.igc_normal import IGCNormal, IGCTanhNormal
from torchrl_agentmixer.distributions.igc_normal_mixture import (
    IGCNormalMixture,
    IGCTanhNormalMixture,
)

__all__ = [
    "GroupedDistribution",
    "GroupedDistributionBuilder",
    "GroupedMixture",
    "GroupedMixtureBuilder",
    "GroupedNormalMixture",
    "GroupedNormalMixtureBuilder",
    "IGCCategorical",
    "IGCMixture",
    "IGCNormal",
    "IGCNormalMixture",
    "IGCTanhNormal",
    "IGCTanhNormalMixture",
    "gumbel_perturbation",
]
