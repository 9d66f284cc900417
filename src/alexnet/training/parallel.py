"""One network on several processes: what each of them holds, computes, and exchanges with the others.

`data`: each has the whole network and a part of each batch; gradients are summed (PyTorch's DistributedDataParallel).
`towers`: each has one tower, and all of each batch, as the two GPUs of 2012 had (paper, section 3.2 and figure 2).
`hybrid`: each has all convolutions and a part of each batch, and a part of the units of each dense layer, which sees the whole
batch (Krizhevsky 2014, "One weird trick"); so only the convolutions' gradients travel.

An `AllGather` stands before each layer that needs what the others have; the last layer is a `RowParallelLinear`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.parallel import DistributedDataParallel

from alexnet.data.batches import Batch, shard_bounds
from alexnet.errors import RecipeError
from alexnet.network.alexnet import AlexNet
from alexnet.network.layers import BatchNorm, Dropout, FlattenMaps
from alexnet.network.lrn import LocalResponseNorm
from alexnet.training.distributed import ProcessGroup

Parallel = Literal["data", "towers", "hybrid"]
Cuts = Sequence[tuple[int, int]]
BATCH, UNITS = 0, 1  # dimensions along which activations are divided


class ParallelModel:
    """A process's share of a training.

    Attributes:
        group: the processes.
        full_model: the network as it is saved and evaluated; every process has it.
        network: what this process trains: `full_model` itself, or a part of it.
        forward: the module to call, images of this process in, logits of `targets` out.
        shard_dims: names of the tensors of which it has a part, with the dimension along which they are divided.
    """

    def __init__(self, network: AlexNet, group: ProcessGroup, kind: Parallel, *, synchronised: bool) -> None:
        """Divide `network`; `synchronised` norms take the statistics of the whole batch, others of a process's part.

        Raises:
            RecipeError: this network cannot be divided so.
        """
        self.group, self.kind, self.full_model, self.network = group, kind, network, network
        self.shard_dims: dict[str, int] = {}
        self.batch_size = 0  # of the whole batch at work
        self.forward: nn.Module = network
        self._own_norms = not synchronised and kind != "towers" and group.world_size > 1
        if group.world_size == 1:
            if kind != "data":
                raise RecipeError(f"--parallel {kind} divides a network over processes, and there is one: add --processes 2")
            return
        if kind != "data":
            self.network = copy.deepcopy(network)
            self.shard_dims = _shard_layers(self, _towers(network, group) if kind == "towers" else _hybrid(network))
            self.load_shards()
        if kind == "towers":
            self.forward = self.network
            return
        for layer in self.network.features:
            if isinstance(layer, BatchNorm) and synchronised:
                layer.total = _all_reduce
            if isinstance(layer, Dropout) and kind == "data":
                layer.whole = partial(self._layout, BATCH, 0)
        ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(
            self.network, [*self.shard_dims, *(["head.bias"] if self.shard_dims else [])]
        )  # that of the head is the same on all
        self.forward = DistributedDataParallel(self.network, forward_sync_buffers=False)
        self.forward.register_comm_hook(None, lambda _, bucket: _reduce_each_gradient(bucket))

    def local_bounds(self, cuts: Cuts) -> list[tuple[int, int]]:
        """Return what this process sees of each batch."""
        return list(cuts) if self.kind == "towers" else shard_bounds(cuts, self.group.rank, self.group.world_size)

    def targets(self, batch: Batch) -> Tensor:
        """Return the targets that belong to the logits which `forward` gives."""
        return self.group.gather(batch.targets, BATCH, self.batch_size) if self.kind == "hybrid" else batch.targets

    def sum(self, *numbers: float) -> list[float]:
        """Return numbers that stand for this process's logits for all of the batch."""
        return self.group.sum(*numbers) if self.kind == "data" else list(numbers)

    def gather_weights(self) -> None:
        """Bring what was trained into `full_model`; all processes call it. Of norms of their own, the first's count."""
        if self._own_norms:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)
        if self.network is not self.full_model:
            theirs = self.full_model.state_dict()
            for name, tensor in self.network.state_dict().items():
                theirs[name].copy_(self.gather_full(name, tensor))

    def load_shards(self) -> None:
        """Take this process's part of `full_model`."""
        if self.network is not self.full_model:
            ours = self.network.state_dict()
            for name, tensor in self.full_model.state_dict().items():
                ours[name].copy_(self.shard(name, tensor))

    def gather_full(self, name: str, tensor: Tensor) -> Tensor:
        """Return all of a tensor that is divided as the network's `name` is."""
        dim = self.shard_dims.get(name)
        if dim is None:
            return tensor
        total: int = self.full_model.state_dict()[name].shape[dim]
        return self.group.gather(tensor, dim, total)

    def shard(self, name: str, tensor: Tensor) -> Tensor:
        """Return this process's part of a whole tensor that is divided as the network's `name` is."""
        dim = self.shard_dims.get(name)
        return tensor if dim is None else self.group.shard(tensor, dim)

    def _layout(self, dim: int, total: int, shape: Sequence[int]) -> tuple[Sequence[int], tuple[slice, ...]]:
        """Return the shape of what all processes have together, and where this one's lies; `total` 0: the batch's images."""
        whole = [*shape]
        whole[dim] = total or self.batch_size
        return whole, (*[slice(None)] * dim, self.group.shard_slice(whole[dim]))


# Dividing a network.


def _towers(network: AlexNet, group: ProcessGroup) -> int | None:
    if network.row.towers != group.world_size:
        raise RecipeError(
            f"--parallel towers gives each process one tower, but {network.row.name!r} has {network.row.towers} and there are "
            f"{group.world_size} processes: take --variant paper or code2012 with 2 processes, or --parallel data"
        )
    return None  # every process sees all images


def _hybrid(network: AlexNet) -> int | None:
    if not any(isinstance(layer, nn.Linear) for layer in network.features):
        raise RecipeError(f"--parallel hybrid divides hidden dense layers, and {network.row.name!r} has none: take data")
    return BATCH


def _shard_layers(model: ParallelModel, sharded_dim: int | None) -> dict[str, int]:
    """Divide the layers of `model.network`, with an exchange wherever one needs what others hold; return what is divided.

    `sharded_dim` is the dimension along which the images that come in are divided, None if every process has them all.
    """
    network, group, towers = model.network, model.group, model.kind == "towers"
    layers, divided, channels = nn.Sequential(), dict[str, int](), 3
    for name, layer in network.features.named_children():
        needs_all = isinstance(layer, FlattenMaps | nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if needs_all and sharded_dim is not None and (towers or not isinstance(layer, nn.Conv2d)):
            layers.add_module(f"exchange_{name}", AllGather(model, sharded_dim, channels))
            sharded_dim = None
        match layer:
            case nn.Conv2d() if towers:
                channels, sharded_dim = layer.out_channels, UNITS
                _keep_shard(layer, group, divided, f"features.{name}", ("weight", "bias"))
                layer.out_channels = len(layer.weight)
                layer.in_channels, layer.groups = layer.in_channels // layer.groups, 1
            case nn.Linear():
                channels, sharded_dim = layer.out_features, UNITS
                _keep_shard(layer, group, divided, f"features.{name}", ("weight", "bias"))
                layer.out_features = len(layer.weight)
            case BatchNorm() if towers:
                _keep_shard(layer, group, divided, f"features.{name}", ("weight", "bias", "running_mean", "running_var"))
                layer.num_features = len(layer.weight)
            case LocalResponseNorm() if towers:
                layer.towers = 1
            case Dropout() if sharded_dim is not None:
                layer.whole = partial(model._layout, sharded_dim, channels if sharded_dim == UNITS else 0)
        layers.add_module(name, layer)
    network.features = layers
    network.head = RowParallelLinear(network.head, group)
    return divided | {"head.weight": UNITS}


def _keep_shard(layer: nn.Module, group: ProcessGroup, divided: dict[str, int], prefix: str, names: Sequence[str]) -> None:
    """Leave of a layer's tensors the first dimension's part of this process."""
    for name in names:
        tensor = getattr(layer, name)
        if tensor is None:
            continue
        part = group.shard(tensor.detach(), 0).clone(memory_format=torch.preserve_format)
        setattr(layer, name, nn.Parameter(part) if isinstance(tensor, nn.Parameter) else part)
        divided[f"{prefix}.{name}"] = 0


class AllGather(nn.Module):
    """Gives every process what all have: maps N C H W or vectors N units, divided along the batch or along channels or units.

    Backwards every process gets the sum of the gradients of its own part.
    """

    def __init__(self, model: ParallelModel, dim: int, channels: int) -> None:
        super().__init__()
        self._model, self._dim, self._channels = [model], dim, channels  # in a list: it is no part of this module

    def forward(self, part: Tensor) -> Tensor:
        """Return the whole."""
        [model] = self._model
        total = model.batch_size if self._dim == BATCH else self._channels
        result: Tensor = _AllGatherFunction.apply(part, model.group, self._dim, total)  # type: ignore[no-untyped-call]
        return result


class _AllGatherFunction(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, part: Tensor, group: ProcessGroup, dim: int, total: int) -> Tensor:
        context.group, context.dim = group, dim
        return group.gather(part, dim, total)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return context.group.reduce_scatter(gradient, context.dim), None, None, None


class RowParallelLinear(nn.Linear):
    """The last dense layer, of which a process has the columns of its own units: partial logits are summed."""

    def __init__(self, head: nn.Linear, group: ProcessGroup) -> None:
        """Take this process's part of `head`."""
        nn.Module.__init__(self)
        self.weight = nn.Parameter(group.shard(head.weight.detach(), UNITS).clone())
        self.bias = nn.Parameter(head.bias.detach().clone())
        self.out_features, self.in_features = self.weight.shape

    def forward(self, units: Tensor) -> Tensor:
        """N x units of this process -> N x classes, the same on all."""
        partial_logits = linear(units, self.weight)
        wide = torch.promote_types(partial_logits.dtype, torch.float32)
        result: Tensor = _AllReduceSum.apply(partial_logits.to(wide)) + self.bias  # type: ignore[no-untyped-call]
        return result


class _AllReduceSum(torch.autograd.Function):
    """A sum over processes, of which all make the same: its gradient is there already."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return _all_reduce(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def _all_reduce(x: Tensor) -> Tensor:
    """Return `x` summed over the processes."""
    x = x.contiguous().clone()
    dist.all_reduce(x)
    return x


def _reduce_each_gradient(bucket: Any) -> torch.futures.Future[Tensor]:
    """Sum the gradients in a bucket, each by itself: by what is in a bucket with it, its last bits would change.

    Buckets are filled otherwise once the first step has shown in which order gradients come; so a training that was taken up
    would not end as one that was not.
    """
    works = [dist.all_reduce(gradient, async_op=True) for gradient in bucket.gradients()]
    done = torch.futures.collect_all([work.get_future() for work in works if work is not None])

    def result(all_done: torch.futures.Future[list[torch.futures.Future[Any]]]) -> Tensor:
        for one in all_done.value():
            one.value()  # raises what went wrong
        buffer: Tensor = bucket.buffer()
        return buffer

    return done.then(result)
