"""Value networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import ValueNorm

from torchrl_agentmixer._choices import check_at_least
from torchrl_agentmixer.modules.body import MultiAgentBody
from torchrl_agentmixer.modules.images import ImageShape
from torchrl_agentmixer.modules.mlp import layer_norm_mlp, orthogonal_


class CentralCritic(nn.Module):
    """Centralized critic: state value of the team.

    LayerNorm, then Linear -> ReLU -> LayerNorm blocks, then Linear.

    Args:
        state_dim (int): entries of the state.

    Keyword Args:
        hidden (sequence of int): widths of the hidden layers.
        input_norm (bool): LayerNorm on the input.
        image_shape (tuple of int, optional): the state is an image of this shape, flattened:
            convolutions come first.
        device (optional): device of the parameters.

    Raises:
        ValueError: for a state of zero entries, or of the wrong size.

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
        image_shape: ImageShape | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_at_least("CentralCritic", 1, state_dim=state_dim)
        self.state_dim = state_dim
        self.net = layer_norm_mlp(
            state_dim, hidden, input_norm=input_norm, image_shape=image_shape, device=device
        )
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
    """Centralized action-value critic :math:`Q(s, a)` of the joint action.

    State and joint action are the input of a :class:`CentralCritic`.

    Args:
        state_dim (int): entries of the state.
        action_dim (int): entries of the joint action: number of agents times action dimensions.

    Keyword Args:
        **kwargs: options of :class:`CentralCritic`.

    Raises:
        ValueError: for a state or an action of zero entries, or of the wrong size.

    Examples:
        >>> import torch
        >>> critic = JointActionCritic(10, 6)
        >>> critic(torch.randn(4, 10), torch.randn(4, 3, 2)).shape
        torch.Size([4, 1])
    """

    def __init__(self, state_dim: int, action_dim: int, **kwargs: Any) -> None:
        super().__init__()
        check_at_least("JointActionCritic", 1, state_dim=state_dim, action_dim=action_dim)
        self.state_dim, self.action_dim = state_dim, action_dim
        self.value = CentralCritic(state_dim + action_dim, **kwargs)

    def forward(
        self, state: torch.Tensor, action: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map the state ``[*B, s]`` and the joint action ``[*B, n, A]`` to a value ``[*B, 1]``.

        Actions of agents outside ``mask`` ``[*B, n]`` are read as zeros.
        """
        if mask is not None:
            action = action * mask.unsqueeze(-1)
        action = action.flatten(-2)
        if (state.shape[-1], action.shape[-1]) != (self.state_dim, self.action_dim):
            raise ValueError(
                f"JointActionCritic: expected a state of {self.state_dim} entries and a joint "
                f"action of {self.action_dim}, got {state.shape[-1]} and {action.shape[-1]}."
            )
        return self.value(torch.cat([state, action], -1))


class DecentralizedCritic(MultiAgentBody):
    """Decentralized critics: one state value per agent from its own observation.

    The critics of IPPO (`arXiv 2011.09533 <https://arxiv.org/abs/2011.09533>`_).

    Args:
        n_agents (int): number of agents.
        observation_dim (int): entries of one agent's observation.

    Keyword Args:
        hidden (sequence of int): widths of the hidden layers.
        image_shape (tuple of int, optional): channels, height and width of observations that are
            images ``[*B, n, C, H, W]``.
        **kwargs: ``share_params``, ``input_norm`` and ``device`` of :class:`MultiAgentBody`.

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
        image_shape: ImageShape | None = None,
        **kwargs: Any,
    ) -> None:
        self.reads_images = image_shape is not None
        super().__init__(
            n_agents,
            observation_dim,
            hidden=hidden,
            out_dim=1,
            out_gain=1.0,
            image_shape=image_shape,
            **kwargs,
        )

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Values ``[*B, n, 1]`` of observations ``[*B, n, o]`` or images ``[*B, n, C, H, W]``."""
        return super().forward(observation.flatten(-3) if self.reads_images else observation)


def value_module(
    critic: nn.Module,
    in_key: NestedKey = "state",
    out_key: NestedKey = "state_value",
    value_norm: ValueNorm | None = None,
) -> TensorDictModule | TensorDictSequential:
    """Make a TorchRL value operator of a critic.

    With ``value_norm`` the network predicts the normalized value, as in MAPPO (`arXiv 2103.01955
    <https://arxiv.org/abs/2103.01955>`_), and the module writes the value in the unit of the
    return, as ``GAE`` and ``MAPPOLoss(value_norm=...)`` expect.

    Args:
        critic (nn.Module): maps ``in_key``'s entry to a value ``[*B, 1]`` or ``[*B, n_agents, 1]``.
        in_key (NestedKey): input of the critic.
        out_key (NestedKey): key of the value.
        value_norm (ValueNorm, optional): the normalizer of the loss.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> critic = value_module(CentralCritic(10))
        >>> critic(TensorDict({"state": torch.randn(4, 10)}, [4]))["state_value"].shape
        torch.Size([4, 1])
    """
    network = TensorDictModule(critic, in_keys=[in_key], out_keys=[out_key])
    if value_norm is None:
        return network
    return TensorDictSequential(
        network, TensorDictModule(_Denormalize(value_norm), in_keys=[out_key], out_keys=[out_key])
    )


class _Denormalize(nn.Module):
    def __init__(self, value_norm: ValueNorm) -> None:
        super().__init__()
        self.value_norm = value_norm

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.value_norm.denormalize(value)
