"""Several processes that train one policy, by ``torch.distributed``: what they share, and agree on.

Every function here does what its name says with one process, too, and then costs nothing.
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
    """Join the processes that ``torchrun`` started, if it did: gloo on CPU, NCCL on CUDA.

    A rank's CUDA device is the one of its number on its machine (``LOCAL_RANK``).

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
    dist.destroy_process_group()  # not after an error: the others may wait elsewhere


def world_size() -> int:
    """How many ranks train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0, the first, writes the run directory."""
    return dist.get_rank() if world_size() > 1 else 0


def share(total: int, name: str) -> int:
    """One rank's share of ``total``.

    Raises:
        ValueError: if there are ranks that would get less than others.

    Examples:
        >>> share(32, "num_envs")
        32
    """
    if total % world_size():
        raise ValueError(
            f"expected `{name}` to be a multiple of the {world_size()} ranks, among which it is "
            f"divided, got {total}."
        )
    return total // world_size()


def own_seed(seed: int) -> int:
    """A seed for what differs between ranks, such as environments; the first rank's is ``seed``."""
    if rank() == 0:
        return seed
    return int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0]) >> 1


def start_alike(state: Mapping[str, Any]) -> None:
    """Give all ranks the first one's parameters, and each random numbers of its own.

    Args:
        state (mapping): parameters and buffers, as of ``state_dict()``, changed in place.
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
    """The mean over ranks of a tensor that each has, of any shape.

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
    """Replace tensors by their means over ranks, in place, in one exchange."""
    tensors = list(tensors)
    if world_size() == 1 or not tensors:
        return
    flat = mean(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over ranks: those of the mean of the ranks' losses."""
    average_(p.grad for p in parameters if p.grad is not None)


def mean_and_std(
    value: torch.Tensor, *, exclude_dims: Sequence[int] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (unbiased) standard deviation over the entries of all ranks.

    Args:
        value (torch.Tensor): one of the same shape on each rank.

    Keyword Args:
        exclude_dims (sequence of int): dimensions whose entries have statistics of their own.

    Returns:
        tuple: both of ``value``'s number of dimensions.

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
    """Entries of mean 0 and standard deviation 1 over all ranks; a single one as it is.

    Args:
        value (torch.Tensor): one of the same shape on each rank, such as advantages.

    Keyword Args:
        exclude_dims (sequence of int): dimensions whose entries are standardized apart.

    Examples:
        >>> standardized(torch.tensor([1.0, 2.0, 3.0]))
        tensor([-1.,  0.,  1.])
    """
    if value.numel() * world_size() == 1:
        return value
    center, std = mean_and_std(value, exclude_dims=exclude_dims)
    return (value - center) / std.clamp_min(1e-6)


def mean_row(row: Mapping[str, float]) -> dict[str, float]:
    """The means over ranks of metrics that all of them have.

    Examples:
        >>> mean_row({"loss": 0.5})
        {'loss': 0.5}
    """
    if world_size() == 1:
        return dict(row)
    values = mean(torch.tensor(list(row.values()), dtype=torch.float64))
    return dict(zip(row, values.tolist(), strict=True))


def largest(*values: int) -> list[int]:
    """For each of some numbers the largest one that any rank has, so that all decide alike.

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
    """What the first rank makes, for all of them; an error of its own is raised on all.

    Args:
        make (callable): called on the first rank alone; what it returns must be picklable.

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
    """What each rank has, in their order, with tensors on the CPU; on the first rank alone.

    Args:
        state (object): picklable, such as nested dicts of tensors and numbers.
    """
    if world_size() == 1:
        return [state]
    found: list[Any] | None = [None] * world_size() if rank() == 0 else None
    with _others():
        dist.gather_object(tree_map_only(torch.Tensor, torch.Tensor.cpu, state), found)
    return found or []


@contextmanager
def _others() -> Iterator[None]:
    """Say that another rank has ended, where the exchange with it breaks."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"rank {rank()} of {world_size()}: another rank of this run has ended, or does not "
            "answer; its own error tells why,"
        ) from error
