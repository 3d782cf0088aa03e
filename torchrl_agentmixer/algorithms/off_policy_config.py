"""Hyperparameters of the off-policy algorithms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchrl_agentmixer._fields import check_fields
from torchrl_agentmixer.algorithms.ranges import RANGES


@dataclass(kw_only=True)
class OffPolicyConfig:
    """Hyperparameters of algorithms with replay and target networks.

    Args:
        lr: learning rate.
        replay_size: transitions in the replay buffer (on the environment's device).
        target_rate: tau of the soft target update, in (0, 1].
        gamma: discount factor.
        share_params: one network for all agents, or one per agent.
        actor_hidden: widths of the hidden layers of the agents' networks.
        input_norm: LayerNorm on the networks' inputs.

    Raises:
        TypeError: for a value of another type; the message names the field.
        ValueError: for a value out of its range.
    """

    lr: float = 3e-4
    replay_size: int = 200_000
    target_rate: float = 0.005
    gamma: float = 0.99
    share_params: bool = False
    actor_hidden: tuple[int, ...] = (64,)
    input_norm: bool = False

    def __post_init__(self) -> None:
        check_fields(self, RANGES)

    @property
    def actor_kwargs(self) -> dict[str, Any]:
        """Options of the agents' networks."""
        return {
            "hidden": self.actor_hidden,
            "share_params": self.share_params,
            "input_norm": self.input_norm,
        }
