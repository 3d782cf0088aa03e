"""Argument validation of the distributions."""

from __future__ import annotations

import torch


def is_readable(value: torch.Tensor) -> bool:
    """Whether values can be read: on the CPU without synchronization, and not while compiling."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling()


def should_validate(validate_args: bool | None, value: torch.Tensor) -> bool:
    """Whether to check tensor values: never while compiling; by default only on the CPU.

    On an accelerator the check would synchronize host and device at every step.
    """
    if validate_args is None:
        return is_readable(value)
    return validate_args and not torch.compiler.is_compiling()


def check_rank(owner: str, name: str, value: torch.Tensor, joint: bool) -> None:
    """Raise a ValueError unless agent axis (``joint``) and last axis exist and are non-empty."""
    layout = "[*B, n_agents, size]" if joint else "[*B, size]"
    rank = 2 if joint else 1
    if value.ndim < rank or 0 in value.shape[value.ndim - rank :]:
        raise ValueError(
            f"{owner}: expected `{name}` of shape {layout} with at least one agent and one entry, "
            f"got {tuple(value.shape)}."
        )


def check_finite(owner: str, name: str, value: torch.Tensor) -> None:
    """Raise a ValueError with the index of the first NaN or infinity in ``value``."""
    if value.sum().isfinite():  # cheaper than all entries, and decides unless the sum overflows
        return
    bad = ~torch.isfinite(value)
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{owner}: expected finite `{name}`, got {value[index].item()} at index {index} of "
            f"shape {tuple(value.shape)} ({int(bad.sum())} such entries). Look for NaN in the "
            "observations, the state or the parameters of the network that wrote it."
        )
