"""Processes that train together: starting them, their group, and its collectives.

`torchrun`, or `launch` here, starts them and sets their environment. A process on its own is a group of one, whose collectives
return their arguments.
"""

import itertools
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from alexnet.data.batches import shard_bounds
from alexnet.errors import AlexNetError
from alexnet.progress import disable_output

TIMEOUT = timedelta(days=1)  # decoding a large dataset takes long; if a process dies, the others fail at once anyway
SECONDS_TO_SAVE = 120  # after a signal, before a process is killed


@dataclass(frozen=True)
class ProcessGroup:
    """Process `rank` of `world_size`, and `local_rank` on its machine.

    `restarts` is how often torchrun has restarted the processes, at most `max_restarts` times.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0
    max_restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Return each number summed over the processes, in float64."""
        if self.world_size == 1:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(totals)
        return totals.tolist()

    def total(self, part: Tensor) -> Tensor:
        """Return a tensor summed over the processes."""
        if self.world_size > 1:
            dist.all_reduce(part)
        return part

    def broadcast_number(self, number: float) -> float:
        """Return the main process's number."""
        return self.sum(number if self.is_main else 0.0)[0]

    def broadcast(self, item: Any) -> Any:
        """Return the main process's `item`: text, or anything that JSON can hold."""
        items = [item]
        if self.world_size > 1:
            dist.broadcast_object_list(items)
        return items[0]

    def broadcast_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the main process's tensors, on the CPU."""
        if self.world_size == 1:
            return tensors
        specs = self.broadcast({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()})
        received = {}
        for name, (shape, dtype) in specs.items():
            received[name] = tensors[name].cpu().contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
            dist.broadcast(received[name], 0)
        return received

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Run the block in one process per machine first, so that the others find its results in the cache."""
        if self.local_rank:
            self._wait_for_all()
        yield
        if not self.local_rank:
            self._wait_for_all()

    def _wait_for_all(self) -> None:
        self.sum(0)  # not `dist.barrier`, which uses the GPUs even if the training is on CPUs

    def shard_slice(self, total: int) -> slice:
        """Return the slice of `total` rows or units that belongs to this process."""
        return slice(*shard_bounds([(0, total)], self.rank, self.world_size)[0])

    def shard(self, whole: Tensor, dim: int) -> Tensor:
        """Return this process's shard of a tensor along `dim`, as a view."""
        part = self.shard_slice(whole.shape[dim])
        return whole.narrow(dim, part.start, part.stop - part.start)

    def gather(self, part: Tensor, dim: int, total: int) -> Tensor:
        """Return the whole tensor, of size `total` along `dim`, from the processes' shards."""
        if self.world_size == 1:
            return part
        lengths = self._shard_lengths(total)
        padded = _pad(_channels_last(part), -dim, max(lengths))
        received = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(received, padded)
        parts = [tensor.narrow(-dim, 0, length) for tensor, length in zip(received, lengths, strict=True)]
        return _channels_first(torch.cat(parts, -dim))

    def reduce_scatter(self, whole: Tensor, dim: int) -> Tensor:
        """Return this process's shard, along `dim`, of the sum of the processes' tensors."""
        if self.world_size == 1:
            return whole
        lengths = self._shard_lengths(whole.shape[dim])
        parts = torch.split(_channels_last(whole), lengths, -dim)
        sent = torch.stack([_pad(part, -dim, max(lengths)) for part in parts])
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)  # sends half as much as Gloo's reduce_scatter, which is an all_reduce
        return _channels_first(received.sum(0).narrow(-dim, 0, lengths[self.rank]))

    def _shard_lengths(self, total: int) -> list[int]:
        bounds = [shard_bounds([(0, total)], rank, self.world_size)[0] for rank in range(self.world_size)]
        return [end - start for start, end in bounds]


# Feature maps are sent as they lie in memory, N H W C, which saves a copy; shards are padded to the size of the largest. So
# dimension 0 stays, and dimension 1 becomes the last, -1.


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x  # N C H W -> N H W C


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x  # N H W C -> N C H W


def _pad(x: Tensor, dim: int, length: int) -> Tensor:
    padding = [*x.shape]
    padding[dim] = length - x.shape[dim]
    return (torch.cat([x, x.new_zeros(padding)], dim) if padding[dim] else x).contiguous()


SINGLE = ProcessGroup()
_group_numbers = itertools.count(1)  # of the groups that this process joined; every process counts alike


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the process group that torchrun set up, or a group of one.

    All processes but the main one are silenced. If there are accelerators, each process takes the one of its local rank.
    """
    variables = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")
    rank, world_size, local_rank, restarts, max_restarts = (int(os.environ.get(name, "0")) for name in variables)
    group = ProcessGroup(rank, world_size or 1, local_rank, restarts, max_restarts)
    if group.world_size == 1:
        yield group
        return
    if not group.is_main:
        disable_output()
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(group.local_rank % torch.accelerator.device_count())
    # torchrun's store outlives restarts and earlier groups, whose addresses are stale: each group gets a prefix of its own.
    store, _, _ = next(iter(rendezvous("env://")))
    store = PrefixStore(f"restart {group.restarts}, group {next(_group_numbers)}", store)
    with _stdout_to_stderr():
        # Gloo for tensors on CPUs, NCCL for those on CUDA
        dist.init_process_group(store=store, rank=group.rank, world_size=group.world_size, timeout=TIMEOUT)
    try:
        yield group
    except AlexNetError as error:
        store.set("failed", str(error))
        raise
    except RuntimeError as error:  # a connection broke, perhaps because another process failed and left its message
        if store.check(["failed"]):
            raise AlexNetError(store.get("failed").decode()) from error
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what C++ code prints to stderr: Gloo announces its connections on stdout, where `--json` answers."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def launch(processes: int, arguments: Sequence[str], device: str | None) -> int:
    """Run `alexnet` with these arguments in several processes on this machine, by torchrun's agent; return the exit code.

    The GPUs are divided among the processes, one for each, and so are the cores. The main process reports its own errors.
    """
    gpus = torch.cuda.device_count() if device in (None, "cuda") else 0
    if 0 < gpus < processes:
        raise AlexNetError(f"--processes {processes} needs a GPU for each, but there are {gpus}: add --device cpu, or lower it")
    if device is not None and ":" in device:
        raise AlexNetError(f"--device {device} names one device for --processes {processes}: use {device.partition(':')[0]}")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if os.name == "nt":
        os.environ.setdefault("USE_LIBUV", "0")  # PyTorch for Windows is built without libuv
    time_to_save: dict[str, Any] = {"shutdown_timeout": SECONDS_TO_SAVE}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # the name of the machine does not resolve everywhere, and the processes would wait for it
        run_id=uuid.uuid4().hex,
        max_restarts=0,
        **(time_to_save if "shutdown_timeout" in signature(LaunchConfig).parameters else {}),  # PyTorch 2.9 lacks it
    )
    try:
        elastic_launch(config, sys.executable)("-m", "alexnet", *arguments)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        killed = f"process {rank} of {processes} was killed ({signal.Signals(-failure.exitcode).name}), and the others with it"
        raise AlexNetError(f"{killed}; resume from the last checkpoint with --resume") from error
    return 0
