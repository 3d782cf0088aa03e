"""Value networks: one for the team on the state, or one for each agent on its own observation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from tensordict.utils import NestedKey
from torch import nn
from torchrl.modules import ValueNorm

from torchrl_agentmixer.modules.actors import MultiAgentBody
from torchrl_agentmixer.modules.initialization import orthogonal_
from torchrl_agentmixer.modules.mlp import layer_norm_mlp


class CentralCritic(nn.Module):
    """Team value of the state: LayerNorm, then Linear -> ReLU -> LayerNorm blocks, then Linear.

    Args:
        state_dim (int): entries of the state.

    Keyword Args:
        hidden (sequence of int): widths of the hidden layers.
        input_norm (bool): LayerNorm on the input.
        device (optional): where to build the parameters.

    Raises:
        ValueError: for an empty state, or a state of the wrong size.

    Examples:
        >>> import torch
        >>> CentralCritic(10)(torch.randn(4, 10)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        state_dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        input_norm: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if state_dim < 1:
            raise ValueError(f"CentralCritic: expected `state_dim` >= 1, got {state_dim}.")
        self.state_dim = state_dim
        self.net = layer_norm_mlp(state_dim, hidden, input_norm=input_norm, device=device)
        self.net.append(
            orthogonal_(nn.Linear([state_dim, *hidden][-1], 1, device=device), gain=1.0)
        )

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Map the state ``[*B, s]`` to its value ``[*B, 1]``."""
        if state.shape[-1] != self.state_dim:
            raise ValueError(
                f"CentralCritic: expected a state of shape [*B, {self.state_dim}], "
                f"got {tuple(state.shape)}."
            )
        return self.net(state)


class JointActionCritic(nn.Module):
    """Team value of a joint action in a state, :math:`Q(s, a)`: the layers of CentralCritic.

    Args:
        state_dim (int): entries of the state.
        action_dim (int): entries of the joint action: agents times action dimensions.

    Keyword Args:
        **kwargs: options of :class:`CentralCritic`.

    Raises:
        ValueError: for an empty state or action, or ones of the wrong size.

    Examples:
        >>> import torch
        >>> critic = JointActionCritic(10, 6)
        >>> critic(torch.randn(4, 10), torch.randn(4, 3, 2)).shape  # three agents, two dimensions
        torch.Size([4, 1])
    """

    def __init__(self, state_dim: int, action_dim: int, **kwargs: Any) -> None:
        super().__init__()
        for name, size in {"state_dim": state_dim, "action_dim": action_dim}.items():
            if size < 1:
                raise ValueError(f"JointActionCritic: expected `{name}` >= 1, got {size}.")
        self.state_dim, self.action_dim = state_dim, action_dim
        self.value = CentralCritic(state_dim + action_dim, **kwargs)

    def forward(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Map the state ``[*B, s]`` and the joint action ``[*B, n, A]`` to a value ``[*B, 1]``."""
        action = action.flatten(-2)
        if (state.shape[-1], action.shape[-1]) != (self.state_dim, self.action_dim):
            raise ValueError(
                f"JointActionCritic: expected a state of {self.state_dim} entries and a joint "
                f"action of {self.action_dim}, got {state.shape[-1]} and {action.shape[-1]}."
            )
        return self.value(torch.cat([state, action], -1))


class DecentralizedCritic(MultiAgentBody):
    """A value for each agent from its own observation alone (IPPO, arXiv 2011.09533).

    Args:
        n_agents (int): number of agents.
        observation_dim (int): entries of one agent's observation.

    Keyword Args:
        hidden (sequence of int): widths of the hidden layers.
        share_params (bool): one network for all agents.
        input_norm (bool): LayerNorm on the input.
        device (optional): where to build the parameters.

    Examples:
        >>> import torch
        >>> DecentralizedCritic(3, 8)(torch.randn(4, 3, 8)).shape
        torch.Size([4, 3, 1])
    """

    def __init__(
        self,
        n_agents: int,
        observation_dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        share_params: bool = False,
        input_norm: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            n_agents,
            observation_dim,
            hidden=hidden,
            input_norm=input_norm,
            out_dim=1,
            share_params=share_params,
            out_gain=1.0,
            device=device,
        )


def value_module(
    critic: nn.Module,
    in_key: NestedKey = "state",
    out_key: NestedKey = "state_value",
    value_norm: ValueNorm | None = None,
) -> TensorDictModule | TensorDictSequential:
    """A critic as a TorchRL value operator; with ``value_norm`` the network works in its units.

    As in MAPPO (arXiv 2103.01955), the network then predicts the *normalized* value, and what is
    written is in the unit of the return, so that ``GAE`` and ``MAPPOLoss(value_norm=...)``, which
    normalizes prediction and target alike, can be used unchanged.

    Args:
        critic (nn.Module): maps ``in_key``'s entry to a value ``[*B, 1]`` or ``[*B, n_agents, 1]``.
        in_key (NestedKey): what the critic reads.
        out_key (NestedKey): where the value is written.
        value_norm (ValueNorm, optional): the normalizer that is also given to the loss.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> critic = value_module(CentralCritic(10))
        >>> critic(TensorDict({"state": torch.randn(4, 10)}, [4]))["state_value"].shape
        torch.Size([4, 1])
    """
    if value_norm is None:
        return TensorDictModule(critic, in_keys=[in_key], out_keys=[out_key])
    network = TensorDictModule(critic, in_keys=[in_key], out_keys=[out_key])
    return TensorDictSequential(
        network, TensorDictModule(_Denormalize(value_norm), in_keys=[out_key], out_keys=[out_key])
    )


class _Denormalize(nn.Module):
    def __init__(self, value_norm: ValueNorm) -> None:
        super().__init__()
        self.value_norm = value_norm

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.value_norm.denormalize(value)
