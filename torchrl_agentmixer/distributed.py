"""Data-parallel training by ``torch.distributed``.

Every function works with a single process as well, at no cost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_map_only

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[None]:
    """Process group of ``torchrun`` (gloo on CPU, NCCL on CUDA); none without ``torchrun``.

    A rank uses the CUDA device of its ``LOCAL_RANK``.

    Examples:
        >>> with process_group():
        ...     world_size()
        1
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    dist.init_process_group()
    yield
    dist.destroy_process_group()  # skipped after an error: other ranks may wait


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; rank 0 writes the run directory."""
    return dist.get_rank() if world_size() > 1 else 0


def share(total: int, name: str) -> int:
    """One rank's share of ``total``.

    Raises:
        ValueError: if the number of ranks does not divide ``total``.

    Examples:
        >>> share(32, "num_envs")
        32
    """
    if total % world_size():
        raise ValueError(
            f"expected `{name}` to be a multiple of the {world_size()} ranks, got {total}."
        )
    return total // world_size()


def own_seed(seed: int) -> int:
    """Seed that differs between ranks, for example of environments; ``seed`` on rank 0."""
    if rank() == 0:
        return seed
    return int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0]) >> 1


def broadcast_parameters(state: Mapping[str, Any]) -> None:
    """Copy rank 0's parameters to all ranks, and seed their generators differently.

    Args:
        state (mapping): ``state_dict()`` with parameters and buffers, changed in place.
    """
    if world_size() == 1:
        return
    for value in state.values():
        if isinstance(value, torch.Tensor):
            with _others():
                dist.broadcast(value.data, src=0)
    if rank():
        torch.manual_seed(own_seed(torch.initial_seed()))


def mean(value: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over ranks.

    Examples:
        >>> mean(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if world_size() == 1:
        return value
    total = value.detach().clone()
    with _others():
        dist.all_reduce(total)
    return total / world_size()


def mean_of_entries(values: torch.Tensor) -> float | None:
    """Mean over the entries of all ranks, which may differ in number; ``None`` of no entries.

    Examples:
        >>> mean_of_entries(torch.tensor([1.0, 2.0])), mean_of_entries(torch.tensor([]))
        (1.5, None)
    """
    if world_size() == 1:
        return float(values.float().mean()) if values.numel() else None
    total = torch.stack([values.double().sum().cpu(), torch.tensor(float(values.numel())).double()])
    total, count = mean(total).tolist()
    return total / count if count else None


def average_(tensors: Iterable[torch.Tensor]) -> None:
    """Average tensors over ranks, in place, in one exchange."""
    tensors = list(tensors)
    if world_size() == 1 or not tensors:
        return
    flat = mean(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over ranks, as of the mean of their losses."""
    average_(p.grad for p in parameters if p.grad is not None)


def mean_and_std(
    value: torch.Tensor, *, exclude_dims: Sequence[int] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased standard deviation over the entries of all ranks.

    Args:
        value (torch.Tensor): of the same shape on each rank.

    Keyword Args:
        exclude_dims (sequence of int): dimensions that are not reduced.

    Examples:
        >>> mean_and_std(torch.tensor([1.0, 2.0, 3.0]))
        (tensor([2.]), tensor([1.]))
    """
    kept = {dim % value.ndim for dim in exclude_dims}
    dims = [dim for dim in range(value.ndim) if dim not in kept]
    if world_size() == 1:
        return value.mean(dims, keepdim=True), value.std(dims, keepdim=True)
    count = world_size() * int(np.prod([value.shape[dim] for dim in dims]))
    center = mean(value.mean(dims, keepdim=True))
    squares = mean((value - center).square().sum(dims, keepdim=True)) * world_size()
    return center, (squares / (count - 1)).sqrt()


def standardized(value: torch.Tensor, *, exclude_dims: Sequence[int] = ()) -> torch.Tensor:
    """Entries with mean 0 and standard deviation 1 over all ranks; a single entry is unchanged.

    Args:
        value (torch.Tensor): of the same shape on each rank, such as advantages.

    Keyword Args:
        exclude_dims (sequence of int): dimensions whose entries are standardized separately.

    Examples:
        >>> standardized(torch.tensor([1.0, 2.0, 3.0]))
        tensor([-1.,  0.,  1.])
    """
    if value.numel() * world_size() == 1:
        return value
    center, std = mean_and_std(value, exclude_dims=exclude_dims)
    return (value - center) / std.clamp_min(1e-6)


def mean_row(row: Mapping[str, float]) -> dict[str, float]:
    """Means of metrics over ranks.

    Examples:
        >>> mean_row({"loss": 0.5})
        {'loss': 0.5}
    """
    if world_size() == 1:
        return dict(row)
    values = mean(torch.tensor(list(row.values()), dtype=torch.float64))
    return dict(zip(row, values.tolist(), strict=True))


def largest(*values: int) -> list[int]:
    """Maximum over ranks of each number, for common decisions.

    Examples:
        >>> largest(0, 15)
        [0, 15]
    """
    if world_size() == 1:
        return list(values)
    result = torch.tensor(values)
    with _others():
        dist.all_reduce(result, dist.ReduceOp.MAX)
    return result.tolist()


def from_first(make: Callable[[], T]) -> T:
    """Result of a call on the first rank, on all ranks; its error is raised on all ranks.

    Args:
        make (callable): called on the first rank; its result must be picklable.

    Examples:
        >>> from_first(lambda: 3)
        3
    """
    if world_size() == 1:
        return make()
    made: list[Any] = [None, None]
    if rank() == 0:
        try:
            made[0] = make()
        except Exception as error:
            made[1] = error
    with _others():
        dist.broadcast_object_list(made)
    if made[1] is not None:
        raise made[1]
    return made[0]


def gather(state: T) -> list[T]:
    """States of all ranks with tensors on the CPU, on the first rank; else an empty list.

    Args:
        state (object): picklable, for example nested dicts of tensors and numbers.
    """
    if world_size() == 1:
        return [state]
    found: list[Any] | None = [None] * world_size() if rank() == 0 else None
    with _others():
        dist.gather_object(tree_map_only(torch.Tensor, torch.Tensor.cpu, state), found)
    return found or []


@contextmanager
def _others() -> Iterator[None]:
    """Turn a failed exchange into an error about the other rank."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"rank {rank()} of {world_size()}: another rank has ended or does not answer, see its "
            "error. Stopped"
        ) from error
