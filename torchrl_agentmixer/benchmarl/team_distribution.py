"""Joint distribution in the shapes of BenchMARL's losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.distributions import Distribution


class TeamDistribution(Distribution):
    """Joint distribution with the team's log-probability repeated per agent.

    BenchMARL's losses have one log-probability, advantage and value per agent. With the team's
    log-probability, each agent's ratio is that of the joint policy (Eq. 13 of `arXiv 2401.08728
    <https://arxiv.org/abs/2401.08728>`_). The deterministic sample, which BenchMARL evaluates, is
    the executed action: the individual modes.

    Args:
        joint (Distribution): an IGC distribution, of batch shape ``[*B]`` and events ``[n, ...]``.

    Examples:
        >>> from torchrl_agentmixer.distributions import IGCCategorical
        >>> team = TeamDistribution(IGCCategorical(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])))
        >>> team.deterministic_sample
        tensor([[0, 1]])
        >>> team.log_prob(torch.tensor([[0, 1]])).shape  # [*B, n]
        torch.Size([1, 2])
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, joint: Distribution) -> None:
        self.joint = joint
        n_agents, *event = joint.event_shape
        super().__init__(
            torch.Size([*joint.batch_shape, n_agents]), torch.Size(event), validate_args=False
        )

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.joint.has_rsample

    @property
    def deterministic_sample(self) -> torch.Tensor:
        """The individual modes, ``[*B, n]`` or ``[*B, n, A]``."""
        if hasattr(self.joint, "individual_mode"):
            return self.joint.individual_mode
        return self.joint.deterministic_sample  # type: ignore[attr-defined]

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:  # type: ignore[override]
        return self.joint.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:  # type: ignore[override]
        return self.joint.rsample(torch.Size(sample_shape))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The team's log-probability, repeated per agent, ``[*B, n]``."""
        return self._per_agent(self.joint.log_prob(value))

    def entropy(self) -> torch.Tensor:
        """The team's entropy in nats, repeated per agent, ``[*B, n]``."""
        return self._per_agent(self.joint.entropy())

    def _per_agent(self, value: torch.Tensor) -> torch.Tensor:
        return value.unsqueeze(-1).expand(*value.shape, self.batch_shape[-1])
