"""The one place where a method takes a gradient step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from torchrl_agentmixer import ranks


def descend(
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    max_norm: float | None = None,
) -> torch.Tensor:
    """One step of the optimizer, on the gradient's mean over all ranks.

    Args:
        loss (torch.Tensor): a scalar, the mean over this rank's samples.
        optimizer (torch.optim.Optimizer): of ``parameters``, or more.
        parameters (sequence of nn.Parameter): whose gradients are clipped together.
        max_norm (float, optional): bound on the norm of the mean gradient; ``None`` for none.

    Returns:
        torch.Tensor: that norm before it was clipped.

    Examples:
        >>> weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> descend(weight.square().sum() / 2, optimizer, [weight], max_norm=1.0).item()
        5.0
        >>> [round(entry, 3) for entry in weight.tolist()]
        [2.4, 3.2]
    """
    optimizer.zero_grad()
    loss.backward()
    ranks.average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, float("inf") if max_norm is None else max_norm)
    optimizer.step()
    return norm
