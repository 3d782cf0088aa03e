"""The one place where a method takes a gradient step, and where its optimizer goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torchrl_agentmixer import distributed


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
    distributed.average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, float("inf") if max_norm is None else max_norm)
    optimizer.step()
    return norm


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Have an optimizer go on from a saved state, with the learning rates that it has now.

    Args:
        optimizer (torch.optim.Optimizer): built by the configuration that goes on.
        state (mapping): ``state_dict()`` of one with the same parameters.

    Raises:
        ValueError: for the state of an optimizer with other groups of parameters.

    Examples:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> before = torch.optim.SGD([weight], lr=1.0, momentum=0.5)
        >>> after = torch.optim.SGD([weight], lr=0.1)
        >>> load_optimizer(after, before.state_dict())
        >>> after.param_groups[0]["lr"], after.param_groups[0]["momentum"]
        (0.1, 0.5)
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
