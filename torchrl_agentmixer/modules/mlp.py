"""MLP with LayerNorm and orthogonal initialization, of actors and critics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


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


def orthogonal_(module: nn.Module, gain: float) -> nn.Module:
    """Initialize every ``nn.Linear`` with orthogonal weights of gain ``gain`` and zero biases.

    Examples:
        >>> import torch
        >>> layer = orthogonal_(torch.nn.Linear(4, 4), gain=2.0)
        >>> bool(torch.allclose(layer.weight @ layer.weight.T, 4 * torch.eye(4), atol=1e-5))
        True
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
    return module
