"""Detection of NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase


def check_batch(batch: TensorDictBase, frames: int) -> None:
    """Raise an error if a batch contains NaN or infinity.

    Args:
        batch (TensorDictBase): ``[num_envs, steps]``.
        frames (int): environment steps at its end.

    Raises:
        FloatingPointError: with the key and the place of the earliest such value.
    """
    places = {
        key: _places(value)
        for key, value in batch.items(include_nested=True, leaves_only=True)
        if value.is_floating_point() and not torch.isfinite(value).all()
    }
    if not places:
        return
    time = batch.ndim - 1

    def order(key: NestedKey) -> tuple[int, bool]:
        return int(places[key][:, time].min()), key != ("next", "reward")

    key = min(places, key=order)  # the earliest; the reward before its sums
    place = places[key][places[key][:, time].argmin()]
    raise FloatingPointError(
        f"entry {key!r} of the batch that ends at frame {frames} is {_where(batch[key], place)} "
        "(environment, step, ...): expected finite numbers."
    )


def check_update(
    metrics: Mapping[str, float | None], state: Mapping[str, Any], frames: int
) -> None:
    """Raise an error if an update's metrics or parameters contain NaN or infinity.

    Args:
        metrics (mapping): metrics of the update, such as losses.
        state (mapping): ``state_dict()`` with parameters and buffers.
        frames (int): environment steps so far.

    Raises:
        FloatingPointError: with the names of the metric and the parameter.

    Examples:
        >>> check_update({"loss": 0.5}, {"weight": torch.tensor([1.0, torch.nan])}, 40)
        Traceback (most recent call last):
        ...
        FloatingPointError: parameter 'weight' is nan at index (1,) of shape (2,) after the \
update at frame 40: expected finite numbers.
    """
    bad = ((n, v) for n, v in metrics.items() if v is not None and not math.isfinite(v))
    found = [f"metric {name!r} is {value}" for name, value in bad][:1]
    parameter = _first_not_finite(state)
    if parameter is not None:
        place = _places(state[parameter])[0]
        found.append(f"parameter {parameter!r} is {_where(state[parameter], place)}")
    if found:
        raise FloatingPointError(
            f"{' and '.join(found)} after the update at frame {frames}: expected finite numbers."
        )


def _first_not_finite(state: Mapping[str, Any]) -> str | None:
    """Name of the first tensor with NaN or infinity; one transfer from the accelerator if none."""
    tensors = {
        name: value
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    if not tensors:
        return None
    finite = torch.stack([torch.isfinite(value).all() for value in tensors.values()])
    return None if finite.all() else list(tensors)[int((~finite).nonzero()[0])]


def _places(value: torch.Tensor) -> torch.Tensor:
    """Indices of NaN and infinity, ``[found, dimensions]``."""
    return (~torch.isfinite(value)).nonzero()


def _where(value: torch.Tensor, place: torch.Tensor) -> str:
    index = tuple(place.tolist())
    return f"{value[index].item()} at index {index} of shape {tuple(value.shape)}"
