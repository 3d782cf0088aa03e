"""Convolutional encoder of image observations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torchrl.modules import ConvNet

ImageShape = tuple[int, int, int]  # channels, height, width
CHANNELS = (32, 64, 64)


class ImageEncoder(nn.Module):
    """TorchRL's ``ConvNet`` on an image at the start of a vector.

    Three convolutions of 3 x 3 pixels, stride 2 and padding 1, each with a ReLU, of 32, 64 and 64
    channels: each halves height and width (rounded up), so images of any size have an encoding.

    Args:
        shape (tuple of int): channels, height and width.

    Keyword Args:
        device (optional): device of the parameters.

    Examples:
        >>> import torch
        >>> encoder = ImageEncoder((3, 16, 16))
        >>> encoder.features_dim
        256
        >>> encoder(torch.rand(5, 3 * 16 * 16 + 2)).shape  # two more entries are passed on
        torch.Size([5, 258])
    """

    def __init__(self, shape: ImageShape, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.size = math.prod(shape)
        sides = [math.ceil(side / 2 ** len(CHANNELS)) for side in shape[1:]]
        self.features_dim = CHANNELS[-1] * math.prod(sides)
        options: dict[str, Any] = {"kernel_sizes": 3, "strides": 2, "paddings": 1}
        self.net = ConvNet(
            in_features=shape[0],
            num_cells=CHANNELS,
            activation_class=nn.ReLU,
            device=device,
            **options,
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map ``[*B, C * H * W + k]`` to ``[*B, features_dim + k]``."""
        image = inputs[..., : self.size].unflatten(-1, self.shape)
        return torch.cat([self.net(image), inputs[..., self.size :]], -1)
