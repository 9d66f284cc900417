"""One network on several processes, in three modes.

`data`: each process has the whole network and a shard of each batch; gradients are summed (DistributedDataParallel).
`towers`: each has one tower and sees all of each batch, as the two GPUs of 2012 did (paper, section 3.2 and figure 2).
`hybrid`: convolutions as in `data`; of each dense layer, a process has a shard of the units and sees the whole batch
(Krizhevsky 2014, "One weird trick"), so that only the gradients of convolutions are sent.

An `AllGather` is inserted before each layer whose input is sharded but needed whole; the head is a `RowParallelLinear`.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.parallel import DistributedDataParallel

from alexnet.data.batches import shard_bounds
from alexnet.errors import RecipeError, counted
from alexnet.network.alexnet import AlexNet
from alexnet.network.layers import BatchNorm, Dropout, FlattenMaps
from alexnet.network.lrn import LocalResponseNorm
from alexnet.training.distributed import ProcessGroup

Parallel = Literal["data", "towers", "hybrid"]
Bounds = Sequence[tuple[int, int]]
BUFFERS = "forward_sync_buffers"  # of DistributedDataParallel
BATCH, UNITS = 0, 1  # dimensions along which activations are sharded


class ParallelModel:
    """The part of a network that one process trains.

    Attributes:
        full_model: the network as it is saved and evaluated; every process has it.
        network: what this process trains: `full_model` itself, or shards of it.
        forward: the module to call: this process's images to the logits of `targets`.
        shard_dims: the dimension along which each sharded tensor is divided, by name.
        batch_size: of the current batch, over all processes.
    """

    def __init__(self, network: AlexNet, group: ProcessGroup, mode: Parallel, *, synchronised: bool) -> None:
        """Shard `network`; `synchronised` batch norms use the statistics of the whole batch, not of a process's shard."""
        self.group, self.mode, self.full_model, self.network = group, mode, network, network
        self.shard_dims: dict[str, int] = {}
        self.batch_size = 0
        self.forward: nn.Module = network
        self._norms_differ = not synchronised and mode != "towers" and group.world_size > 1
        if group.world_size == 1:
            if mode != "data":
                raise RecipeError(f"--parallel {mode} divides a network over processes, and there is one: add --processes 2")
            return
        if mode != "data":
            _check_divisible(network, group.world_size, mode)
            self.network = copy.deepcopy(network)
            self.shard_dims = _shard_layers(self)
            self.load_shards()
        if mode == "towers":
            self.forward = self.network
            return
        for layer in self.network.features:
            if isinstance(layer, BatchNorm) and synchronised:
                layer.all_reduce = _all_reduce
            if isinstance(layer, Dropout) and mode == "data":
                layer.layout = partial(self._layout, BATCH, 0)
        not_summed = [*self.shard_dims, *(["head.bias"] if self.shard_dims else [])]  # every process has the bias's gradient
        ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(self.network, not_summed)
        options = signature(DistributedDataParallel).parameters
        unsynchronised: dict[str, Any] = {BUFFERS if BUFFERS in options else "broadcast_buffers": False}  # older PyTorch's name
        self.forward = DistributedDataParallel(self.network, **unsynchronised)
        self.forward.register_comm_hook(None, lambda _, bucket: _reduce_each_gradient(bucket))

    def local_bounds(self, bounds: Bounds) -> list[tuple[int, int]]:
        """Return the bounds of the images of each batch that this process sees."""
        return list(bounds) if self.mode == "towers" else shard_bounds(bounds, self.group.rank, self.group.world_size)

    def targets(self, targets: Tensor) -> Tensor:
        """Return the targets of the logits that `forward` returns, from those of this process's images."""
        return self.group.gather(targets, BATCH, self.batch_size) if self.mode == "hybrid" else targets

    def sum(self, *numbers: float) -> list[float]:
        """Sum numbers over the batch: over processes only in `data`, as otherwise each has the logits of the whole batch."""
        return self.group.sum(*numbers) if self.mode == "data" else list(numbers)

    def gather_weights(self) -> None:
        """Copy the trained weights of all processes to `full_model`; every process calls it."""
        self.gather(self.network.state_dict(), self.full_model)

    def load_shards(self) -> None:
        """Copy this process's shards from `full_model`."""
        self.scatter(self.full_model, self.network.state_dict())

    def gather(self, tensors: Mapping[str, Tensor], full: AlexNet) -> None:
        """Copy tensors like those of `network`, from all processes, to the network `full`; every process calls it.

        Without shards, they are the tensors of `full` already. Statistics of unsynchronised batch norms are the main process's.
        """
        if self._norms_differ:
            for name, _ in self.network.named_buffers():
                dist.broadcast(tensors[name], 0)
        if self.network is not self.full_model:
            state = full.state_dict()
            for name, tensor in tensors.items():
                state[name].copy_(self.gather_full(name, tensor))

    def scatter(self, full: AlexNet, tensors: Mapping[str, Tensor]) -> None:
        """Copy this process's shards of the network `full` to tensors like those of `network`."""
        if self.network is not self.full_model:
            for name, tensor in full.state_dict().items():
                tensors[name].copy_(self.shard(name, tensor))

    def gather_full(self, name: str, tensor: Tensor) -> Tensor:
        """Return the full tensor from its shards, which are divided as the parameter `name` is."""
        dim = self.shard_dims.get(name)
        if dim is None:
            return tensor
        total: int = self.full_model.state_dict()[name].shape[dim]
        return self.group.gather(tensor, dim, total)

    def shard(self, name: str, tensor: Tensor) -> Tensor:
        """Return this process's shard of a full tensor, divided as the parameter `name` is."""
        dim = self.shard_dims.get(name)
        return tensor if dim is None else self.group.shard(tensor, dim)

    def _layout(self, dim: int, total: int, shape: Sequence[int]) -> tuple[Sequence[int], tuple[slice, ...]]:
        """Return the shape over all processes, and the slices of this one's shard.

        `total` is the full size along `dim`; 0 stands for the batch size.
        """
        whole = [*shape]
        whole[dim] = total or self.batch_size
        return whole, (*[slice(None)] * dim, self.group.shard_slice(whole[dim]))


# Sharding a network


def _check_divisible(network: AlexNet, processes: int, mode: Parallel) -> None:
    name, towers = network.row.name, network.row.towers
    if mode == "towers" and towers != processes:
        problem = f"gives each process one tower, but {name!r} has {towers} and this run has {counted(processes, 'process')}"
        advice = "use --variant paper or code2012 with 2 processes, or --parallel data"
        raise RecipeError(f"--parallel towers {problem}: {advice}")
    if mode == "hybrid" and not any(isinstance(layer, nn.Linear) for layer in network.features):
        raise RecipeError(f"--parallel hybrid divides hidden dense layers, and {name!r} has none: use data")


def _shard_layers(model: ParallelModel) -> dict[str, int]:
    """Shard the layers of `model.network`, insert an `AllGather` where needed, and return the `shard_dims`."""
    network, group, towers = model.network, model.group, model.mode == "towers"
    layers, shard_dims, channels = nn.Sequential(), dict[str, int](), 3
    sharded_dim = None if towers else BATCH  # of the current layer's input; None if it is whole
    for name, layer in network.features.named_children():
        needs_all = isinstance(layer, FlattenMaps | nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if needs_all and sharded_dim is not None and (towers or not isinstance(layer, nn.Conv2d)):
            layers.add_module(f"exchange_{name}", AllGather(model, sharded_dim, channels))
            sharded_dim = None
        if isinstance(layer, nn.Linear) or (towers and isinstance(layer, nn.Conv2d | BatchNorm)):
            shard_dims |= {f"features.{name}.{key}": 0 for key in _keep_shard(layer, group)}
        match layer:
            case nn.Conv2d() if towers:
                channels, sharded_dim = layer.out_channels, UNITS
                layer.out_channels = len(layer.weight)
                layer.in_channels, layer.groups = layer.in_channels // layer.groups, 1
            case nn.Linear():
                channels, sharded_dim = layer.out_features, UNITS
                layer.out_features = len(layer.weight)
            case BatchNorm() if towers:
                layer.num_features = len(layer.weight)
            case LocalResponseNorm() if towers:
                layer.towers = 1
            case Dropout() if sharded_dim is not None:
                layer.layout = partial(model._layout, sharded_dim, channels if sharded_dim == UNITS else 0)
        layers.add_module(name, layer)
    network.features = layers
    network.head = RowParallelLinear(network.head, group)
    return shard_dims | {"head.weight": UNITS}


def _keep_shard(layer: nn.Module, group: ProcessGroup) -> list[str]:
    """Replace the tensors of a layer with this process's shards along the first dimension; return their names."""
    tensors = {name: tensor for name, tensor in layer.state_dict().items() if tensor.ndim}  # not the batch counter
    for name, tensor in tensors.items():
        part = group.shard(tensor, 0).clone(memory_format=torch.preserve_format)
        setattr(layer, name, nn.Parameter(part) if isinstance(getattr(layer, name), nn.Parameter) else part)
    return list(tensors)


class AllGather(nn.Module):
    """Gathers feature maps N C H W, or vectors N units, that are sharded along the batch or along channels or units.

    Its backward pass is a reduce-scatter: each process receives the summed gradient of its own shard.
    """

    def __init__(self, model: ParallelModel, dim: int, channels: int) -> None:
        super().__init__()
        self._model, self._dim, self._channels = [model], dim, channels  # in a list, so as not to become a submodule

    def forward(self, part: Tensor) -> Tensor:
        """Return the full tensor."""
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
    """A dense layer with its input units sharded: each process computes partial logits, which are summed."""

    def __init__(self, head: nn.Linear, group: ProcessGroup) -> None:
        """Keep this process's shard of `head`."""
        nn.Module.__init__(self)
        self.weight = nn.Parameter(group.shard(head.weight.detach(), UNITS).clone())
        self.bias = nn.Parameter(head.bias.detach().clone())
        self.out_features, self.in_features = self.weight.shape

    def forward(self, units: Tensor) -> Tensor:
        """Map N x units of this process to N x classes, the same on all processes."""
        partial_logits = linear(units, self.weight)
        wide = torch.promote_types(partial_logits.dtype, torch.float32)
        result: Tensor = _AllReduceSum.apply(partial_logits.to(wide)) + self.bias  # type: ignore[no-untyped-call]
        return result


class _AllReduceSum(torch.autograd.Function):
    """A sum over processes; all compute the same from it, so its gradient needs no communication."""

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
    """Sum each gradient of a bucket separately, so that its last bits do not depend on the others in the bucket.

    DistributedDataParallel rebuilds its buckets after the first step, so a resumed training would otherwise end with other
    weights than an uninterrupted one.
    """
    works = [dist.all_reduce(gradient, async_op=True) for gradient in bucket.gradients()]
    done = torch.futures.collect_all([work.get_future() for work in works if work is not None])

    def result(all_done: torch.futures.Future[list[torch.futures.Future[Any]]]) -> Tensor:
        for work_done in all_done.value():
            work_done.value()  # raises the error of a failed one
        buffer: Tensor = bucket.buffer()
        return buffer

    return done.then(result)
