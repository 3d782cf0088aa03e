"""MLP with LayerNorm and orthogonal initialization, of actors and critics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from torchrl_agentmixer.modules.images import ImageEncoder, ImageShape


def layer_norm_mlp(
    in_dim: int,
    hidden: Sequence[int],
    *,
    input_norm: bool,
    image_shape: ImageShape | None = None,
    device: torch.device | str | None = None,
) -> nn.Sequential:
    """MLP of Linear -> ReLU -> LayerNorm layers, orthogonal with gain sqrt(2).

    Args:
        in_dim (int): entries of the input.
        hidden (sequence of int): widths; may be empty, but not for images.

    Keyword Args:
        input_norm (bool): LayerNorm on the input, or on the encoding of an image.
        image_shape (tuple of int, optional): the input begins with an image, flattened: an
            :class:`ImageEncoder` comes first.
        device (optional): device of the parameters; on ``"meta"`` they are not initialized.

    Raises:
        ValueError: for images without hidden layers.

    Examples:
        >>> import torch
        >>> layer_norm_mlp(5, (64, 32), input_norm=True)(torch.randn(7, 5)).shape
        torch.Size([7, 32])
    """
    layers: list[nn.Module] = []
    if image_shape is not None:
        if not hidden:
            raise ValueError("expected at least one hidden width after an image encoder, got none.")
        encoder = ImageEncoder(image_shape, device=device)
        in_dim += encoder.features_dim - encoder.size
        layers.append(encoder)
    if input_norm:
        layers.append(nn.LayerNorm(in_dim, device=device))
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
    """Initialize linear and convolutional layers: orthogonal weights of a gain, zero biases.

    Examples:
        >>> import torch
        >>> layer = orthogonal_(torch.nn.Linear(4, 4), gain=2.0)
        >>> bool(torch.allclose(layer.weight @ layer.weight.T, 4 * torch.eye(4), atol=1e-5))
        True
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
