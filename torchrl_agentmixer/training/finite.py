"""Detection of NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase


def check_batch(batch: TensorDictBase, frames: int) -> None:
    """Raise an error if a batch contains NaN or infinity.

    Args:
        batch (TensorDictBase): ``[num_envs, steps]``.
        frames (int): environment steps at its end.

    Raises:
        FloatingPointError: with the key and the place of the earliest such value.
    """
    time, found = batch.ndim - 1, []
    for key, value in batch.items(include_nested=True, leaves_only=True):
        if value.is_floating_point() and not torch.isfinite(value).all():
            places = (~torch.isfinite(value)).nonzero()  # [found, dimensions]
            place = places[places[:, time].argmin()]
            # The reward comes before its sums.
            found.append((int(place[time]), key != ("next", "reward"), key, _where(value, place)))
    if found:
        _, _, key, where = min(found, key=lambda entry: entry[:2])
        raise FloatingPointError(
            f"entry {key!r} of the batch that ends at frame {frames} is {where} (environment, "
            "step, ...): expected finite numbers."
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
        FloatingPointError: with the names of the first such metric and parameter.

    Examples:
        >>> check_update({"loss": 0.5}, {"weight": torch.tensor([1.0, torch.nan])}, 40)
        Traceback (most recent call last):
        ...
        FloatingPointError: parameter 'weight' is nan at index (1,) of shape (2,) after the \
update at frame 40: expected finite numbers.
    """
    bad = ((k, v) for k, v in metrics.items() if v is not None and not math.isfinite(v))
    found = [f"metric {name!r} is {value}" for name, value in bad][:1]
    tensors = {
        name: value
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    finite = [torch.isfinite(value).all() for value in tensors.values()]
    if finite and not torch.stack(finite).all():  # one transfer from the accelerator
        name = list(tensors)[int((~torch.stack(finite)).nonzero()[0])]
        place = (~torch.isfinite(tensors[name])).nonzero()[0]
        found.append(f"parameter {name!r} is {_where(tensors[name], place)}")
    if found:
        raise FloatingPointError(
            f"{' and '.join(found)} after the update at frame {frames}: expected finite numbers."
        )


def _where(value: torch.Tensor, place: torch.Tensor) -> str:
    index = tuple(place.tolist())
    return f"{value[index].item()} at index {index} of shape {tuple(value.shape)}"
