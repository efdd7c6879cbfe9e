"""Several processes that train one set of weights; a single process when nothing says otherwise.

`torchrun` starts the processes and describes them in RANK, WORLD_SIZE and LOCAL_RANK. Every process takes its share of
the rows of a batch; gradients are summed over processes by hand (no wrapper round the modules), because the loss is
already divided by the rows of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from carrara.errors import RecipeError

__all__ = ["World", "joined", "world"]

_BUCKET = 2**24  # numbers that travel in one message


@dataclass(frozen=True)
class World:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def total(self, *numbers: float) -> tuple[float, ...]:
        """The sums of numbers over all processes, in float64."""
        if self.size == 1:
            return tuple(numbers)
        on_cuda = dist.get_backend() == "nccl"
        tensor = torch.tensor(numbers, dtype=torch.float64, device=f"cuda:{self.local_rank}" if on_cuda else "cpu")
        dist.all_reduce(tensor)
        return tuple(tensor.tolist())

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return self.total(float(flag))[0] > 0

    def barrier(self) -> None:
        """Waits until every process is here."""
        self.total(0.0)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (n, k) of all processes one below the other, in the order of the processes: float64."""
        rows = rows.detach().to("cpu", torch.float64)
        if self.size == 1:
            return rows
        counts = self.total(*(float(len(rows) * (rank == self.rank)) for rank in range(self.size)))
        before, whole = int(sum(counts[: self.rank])), torch.zeros(int(sum(counts)), rows.shape[1], dtype=torch.float64)
        whole[before : before + len(rows)] = rows
        return torch.tensor(self.total(*whole.flatten().tolist()), dtype=torch.float64).view_as(whole)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its sum over the processes; a parameter without one counts as zero."""
        if self.size == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the first one's numbers."""
        if self.size > 1:
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, 0)
                tensor.detach().copy_(whole)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def world() -> World:
    """This process among its siblings, as `torchrun` describes it; alone when it does not.

    Raises RecipeError for a description that makes no sense.
    """
    try:
        numbers = [int(os.environ.get(name, default)) for name, default in _VARIABLES]
    except ValueError:
        given = {name: os.environ.get(name) for name, _ in _VARIABLES}
        raise RecipeError(f"the environment describes no process group: {given}; start with torchrun") from None
    rank, size, local_rank = numbers
    if not 0 <= rank < size:
        raise RecipeError(f"RANK is {rank} and WORLD_SIZE is {size}; start with torchrun")
    return World(rank, size, local_rank)


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The process group for a while: NCCL on GPUs, Gloo otherwise; nothing to do for a single process."""
    here = world()
    if here.size == 1 or dist.is_initialized():
        yield here
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=here.rank, world_size=here.size)
    try:
        yield here
    finally:
        dist.destroy_process_group()
