"""The processes that train together: who they are, and what they tell each other.

`torchrun` starts them and names them in the environment. Without it a process is alone, and everything here is free.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from alexnet.data.batches import shard_bounds
from alexnet.errors import AlexNetError
from alexnet.progress import silence

PATIENCE = timedelta(days=1)  # for one that decodes a large dataset; where one dies, the others' connections end at once


@dataclass(frozen=True)
class ProcessGroup:
    """Process `rank` of `world_size`, the `local`-th on its machine.

    `restarts` counts how often torchrun began all of them anew, at most `limit` times.
    """

    rank: int = 0
    world_size: int = 1
    local: int = 0
    restarts: int = 0
    limit: int = 0

    @property
    def is_main(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Return each number summed over the processes, in float64."""
        if self.world_size == 1:
            return list(numbers)
        result = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(result)
        return result.tolist()

    def broadcast_number(self, number: float) -> float:
        """Return the first process's number."""
        return self.sum(number if self.is_main else 0.0)[0]

    def broadcast(self, item: Any) -> Any:
        """Return what the first process has in `item`, text or what JSON holds."""
        things = [item]
        if self.world_size > 1:
            dist.broadcast_object_list(things)
        return things[0]

    def broadcast_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the first process's tensors, on the CPU."""
        if self.world_size == 1:
            return tensors
        kinds = self.broadcast({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()})
        result = {}
        for name, (shape, dtype) in kinds.items():
            result[name] = tensors[name].cpu().contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
            dist.broadcast(result[name], 0)
        return result

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """On each machine let one process go first: it decodes into the cache that the others then find."""
        if self.world_size > 1 and self.local:
            dist.barrier()
        yield
        if self.world_size > 1 and not self.local:
            dist.barrier()

    def shard_slice(self, total: int) -> slice:
        """Return which of `total` rows or units are this process's."""
        return slice(*shard_bounds([(0, total)], self.rank, self.world_size)[0])

    def shard(self, whole: Tensor, dim: int) -> Tensor:
        """Return this process's part of a tensor along `dim`, a view."""
        mine = self.shard_slice(whole.shape[dim])
        return whole.narrow(dim, mine.start, mine.stop - mine.start)

    def gather(self, part: Tensor, dim: int, total: int) -> Tensor:
        """Return the whole, `total` long along `dim`, of which each process has the `part` that `shard` gives."""
        if self.world_size == 1:
            return part
        lengths = self._lengths(total)
        mine = _longer(_rows(part), dim, max(lengths))
        parts = [torch.empty_like(mine) for _ in lengths]
        dist.all_gather(parts, mine)
        whole = [_shorter(theirs, dim, length) for theirs, length in zip(parts, lengths, strict=True)]
        return _maps(torch.cat(whole, _place(dim, part.ndim)))

    def reduce_scatter(self, whole: Tensor, dim: int) -> Tensor:
        """Return this process's part, along `dim`, of the sum of what all have as `whole`."""
        if self.world_size == 1:
            return whole
        lengths = self._lengths(whole.shape[dim])
        parts = torch.split(_rows(whole), lengths, _place(dim, whole.ndim))
        sent = torch.stack([_longer(part, dim, max(lengths)) for part in parts])
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)  # half of what Gloo's reduce_scatter sends, which sums all for everyone
        return _maps(_shorter(received.sum(0), dim, lengths[self.rank]))

    def _lengths(self, total: int) -> list[int]:
        return [
            end - start for rank in range(self.world_size) for start, end in shard_bounds([(0, total)], rank, self.world_size)
        ]


# Maps travel as they lie in memory, N H W C, so that nothing is copied; all send as much as the longest part is.


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def _maps(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def _place(dim: int, axes: int) -> int:
    return 3 if dim == 1 and axes == 4 else dim


def _longer(x: Tensor, dim: int, length: int) -> Tensor:
    path = _place(dim, x.ndim)
    missing = [*x.shape]
    missing[path] = length - x.shape[path]
    return (torch.cat([x, x.new_zeros(missing)], path) if missing[path] else x).contiguous()


def _shorter(x: Tensor, dim: int, length: int) -> Tensor:
    return x.narrow(_place(dim, x.ndim), 0, length)


SINGLE_PROCESS = ProcessGroup()
_meetings = itertools.count(1)  # of this process; all of a group have met as often


def _number(name: str) -> int:
    return int(os.environ.get(name, "0"))


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, for as long as the context lasts; alone if it did not.

    All but the first are silent. Each takes the accelerator of its number, where there are some.

    Raises:
        AlexNetError: what one raises ends all of them.
    """
    rank, local = _number("RANK"), _number("LOCAL_RANK")
    restarts, limit = _number("TORCHELASTIC_RESTART_COUNT"), _number("TORCHELASTIC_MAX_RESTARTS")
    group = ProcessGroup(rank, _number("WORLD_SIZE") or 1, local, restarts, limit)
    if group.world_size == 1:
        yield group
        return
    if not group.is_main:
        silence()
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(group.local % torch.accelerator.device_count())
    # torchrun's store outlives restarts and trainings, and with it addresses that nobody listens at: a name for each meeting.
    store, _, _ = next(iter(rendezvous("env://")))
    store = PrefixStore(f"start {group.restarts}, meeting {next(_meetings)}", store)
    # Gloo for tensors on CPUs, NCCL for those on CUDA
    dist.init_process_group(store=store, rank=group.rank, world_size=group.world_size, timeout=PATIENCE)
    try:
        yield group
    except AlexNetError as error:
        store.set("failed", str(error))
        raise
    except RuntimeError as error:  # a connection broke: did somebody leave with a reason?
        if store.check(["failed"]):
            raise AlexNetError(store.get("failed").decode()) from error
        raise
    finally:
        dist.destroy_process_group()
