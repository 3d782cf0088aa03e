"""MLP with LayerNorm, of actors and critics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from torchrl_agentmixer.modules.initialization import orthogonal_


def layer_norm_mlp(
    in_dim: int,
    hidden: Sequence[int],
    *,
    input_norm: bool,
    device: torch.device | str | None = None,
) -> nn.Sequential:
    """MLP of Linear -> ReLU -> LayerNorm layers, orthogonal with gain sqrt(2).

    Args:
        in_dim (int): entries of the input.
        hidden (sequence of int): widths; may be empty.

    Keyword Args:
        input_norm (bool): LayerNorm on the input.
        device (optional): device of the parameters; on ``"meta"`` they are not initialized.

    Examples:
        >>> import torch
        >>> layer_norm_mlp(5, (64, 32), input_norm=True)(torch.randn(7, 5)).shape
        torch.Size([7, 32])
    """
    layers: list[nn.Module] = [nn.LayerNorm(in_dim, device=device)] if input_norm else []
    for width in hidden:
        layers += [
            nn.Linear(in_dim, width, device=device),
            nn.ReLU(),
            nn.LayerNorm(width, device=device),
        ]
        in_dim = width
    net = nn.Sequential(*layers)
    if device != "meta":
        orthogonal_(net, gain=math.sqrt(2))
    return net
