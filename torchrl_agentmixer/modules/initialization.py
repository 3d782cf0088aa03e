"""Orthogonal initialization."""

from __future__ import annotations

from torch import nn


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
