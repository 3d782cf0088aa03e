"""Centralized actor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules.mlp import layer_norm_mlp, orthogonal_


class CentralActor(nn.Module):
    r"""Centralized actor (AIL's expert): maps the state to the parameters of all agents' policies.

    Linear -> ReLU -> LayerNorm blocks and one linear head per group. Scales of continuous actions
    do not depend on the state, as in :class:`GaussianActor`.

    Args:
        groups (sequence of AgentGroup): the agents.
        state_dim (int): entries of the state.

    Keyword Args:
        hidden (sequence of int): widths of the hidden layers.
        input_norm (bool): LayerNorm on the state.
        head_gain (float): gain of the heads' orthogonal initialization.
        scale_bound (float): in the unit of the action.

    Raises:
        ValueError: for a state of the wrong size.

    Examples:
        >>> group = AgentGroup("all", n_agents=3, observation_dim=8, action_dim=2, discrete=False)
        >>> loc, scale = CentralActor([group], state_dim=5)(torch.randn(4, 5))
        >>> loc.shape, scale.shape
        (torch.Size([4, 3, 2]), torch.Size([4, 3, 2]))
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        state_dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        input_norm: bool = False,
        head_gain: float = 0.01,
        scale_bound: float = 0.5,
    ) -> None:
        super().__init__()
        self.state_dim = state_dim
        self.scale_bound = scale_bound
        self.groups = tuple(groups)
        self.net = layer_norm_mlp(state_dim, hidden, input_norm=input_norm)
        width = [state_dim, *hidden][-1]
        self.heads = nn.ModuleList(
            orthogonal_(nn.Linear(width, group.n_agents * group.action_dim), gain=head_gain)
            for group in groups
        )
        self.scale_params = nn.ParameterDict(
            {
                group.name: nn.Parameter(torch.ones(group.n_agents, group.action_dim))
                for group in groups
                if not group.discrete
            }
        )

    def forward(self, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map ``[*B, s]`` to logits ``[*B, n, K]``, or loc and scale ``[*B, n, A]``, by group."""
        if state.shape[-1] != self.state_dim:
            raise ValueError(
                f"CentralActor: expected a state of shape [*B, {self.state_dim}], "
                f"got {tuple(state.shape)}."
            )
        features = self.net(state)
        outputs: list[torch.Tensor] = []
        for group, head in zip(self.groups, self.heads, strict=True):
            params = head(features).unflatten(-1, (group.n_agents, group.action_dim))
            outputs.append(params)
            if not group.discrete:
                scale = self.scale_bound * self.scale_params[group.name].sigmoid()
                outputs.append(scale.expand_as(params))
        return tuple(outputs)
