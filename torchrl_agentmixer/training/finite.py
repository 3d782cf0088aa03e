"""Numbers that are none: found where they appear, before they are saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase


def check_batch(batch: TensorDictBase, frames: int) -> None:
    """Raise an error if a batch holds NaN or an infinity, before anything is learned from it.

    Args:
        batch (TensorDictBase): ``[num_envs, steps]``.
        frames (int): environment steps at its end.

    Raises:
        FloatingPointError: naming the entry, and the first such value's place.
    """
    bad = {
        key: value
        for key, value in batch.items(include_nested=True, leaves_only=True)
        if value.is_floating_point() and not torch.isfinite(value).all()
    }
    if not bad:
        return
    time = batch.ndim - 1

    def order(key: NestedKey) -> tuple[int, bool]:
        return int(_places(bad[key])[:, time].min()), key != ("next", "reward")

    key = min(bad, key=order)  # where it began; of a reward and its sums, the reward
    places = _places(bad[key])
    place = places[places[:, time].argmin()]
    raise FloatingPointError(
        f"entry {key!r} of the batch that ends at frame {frames} is {_where(bad[key], place)} "
        "(environment, step, ...): expected finite numbers."
    )


def check_update(
    metrics: Mapping[str, float | None], state: Mapping[str, Any], frames: int
) -> None:
    """Raise an error if an update left NaN or an infinity, in its metrics or the parameters.

    Args:
        metrics (mapping): of the update, losses among them.
        state (mapping): parameters and buffers, as of ``state_dict()``.
        frames (int): environment steps so far.

    Raises:
        FloatingPointError: naming the metric and the parameter.

    Examples:
        >>> check_update({"loss": 0.5}, {"weight": torch.tensor([1.0, torch.nan])}, 40)
        Traceback (most recent call last):
        ...
        FloatingPointError: parameter 'weight' is nan at index (1,) of shape (2,) after the \
update at frame 40: expected finite numbers.
    """
    found = [
        f"metric {name!r} is {value}"
        for name, value in metrics.items()
        if value is not None and not math.isfinite(value)
    ]
    parameter = _not_finite(state)
    if parameter is not None:
        found.append(parameter)
    if found:
        what = " and ".join([*found[:1], *found[1:][-1:]])
        raise FloatingPointError(
            f"{what} after the update at frame {frames}: expected finite numbers."
        )


def _not_finite(state: Mapping[str, Any]) -> str | None:
    """The first parameter that is not finite; one transfer from the accelerator if all are."""
    tensors = {
        name: value
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    if not tensors:
        return None
    finite = torch.stack([torch.isfinite(value).all() for value in tensors.values()])
    if finite.all():
        return None
    name = list(tensors)[int((~finite).nonzero()[0])]
    return f"parameter {name!r} is {_where(tensors[name], _places(tensors[name])[0])}"


def _places(value: torch.Tensor) -> torch.Tensor:
    """Indices of what is not finite, ``[found, dimensions]``."""
    return (~torch.isfinite(value)).nonzero()


def _where(value: torch.Tensor, place: torch.Tensor) -> str:
    index = tuple(place.tolist())
    return f"{value[index].item()} at index {index} of shape {tuple(value.shape)}"
