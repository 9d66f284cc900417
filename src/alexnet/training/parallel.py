"""One network on several processes: what each of them holds, computes, and exchanges with the others.

`data`: each has the whole network and a part of each batch; gradients are summed (PyTorch's DistributedDataParallel).
`towers`: each has one tower, and all of each batch, as the two GPUs of 2012 had (paper, section 3.2 and figure 2).
`hybrid`: each has all convolutions and a part of each batch, and a part of the units of each dense layer, which sees the whole
batch (Krizhevsky 2014, "One weird trick"); so only the convolutions' gradients travel.

Where a layer needs what the others have, an `Exchange` stands before it in the network, and `ExchangedHead` is the last layer.
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

from alexnet.data.batches import Batch, share
from alexnet.errors import RecipeError
from alexnet.network.alexnet import AlexNet
from alexnet.network.layers import BatchNorm, Dropout, FlattenMaps
from alexnet.network.lrn import LocalResponseNorm
from alexnet.training.processes import Group

Parallel = Literal["data", "towers", "hybrid"]
Cuts = Sequence[tuple[int, int]]
BATCH, UNITS = 0, 1  # dimensions along which activations are divided


class Share:
    """A process's share of a training.

    Attributes:
        group: the processes.
        whole: the network as it is saved and evaluated; every process has it.
        network: what this process trains: `whole` itself, or a part of it.
        forward: the module to call, images of this process in, logits of `targets` out.
        divided: names of the tensors of which it has a part, with the dimension along which they are divided.
    """

    def __init__(self, network: AlexNet, group: Group, kind: Parallel, *, synchronised: bool) -> None:
        """Divide `network`; `synchronised` norms take the statistics of the whole batch, others of a process's part.

        Raises:
            RecipeError: this network cannot be divided so.
        """
        self.group, self.kind, self.whole, self.network = group, kind, network, network
        self.divided: dict[str, int] = {}
        self.images = 0  # of the whole batch at work
        self.forward: nn.Module = network
        self._own_norms = not synchronised and kind != "towers" and group.world > 1
        if group.world == 1:
            if kind != "data":
                raise RecipeError(f"--parallel {kind} divides a network over processes, and there is one: add --processes 2")
            return
        if kind != "data":
            self.network = copy.deepcopy(network)
            self.divided = _divide(self, _towers(network, group) if kind == "towers" else _hybrid(network))
            self.take()
        if kind == "towers":
            self.forward = self.network
            return
        for layer in self.network.features:
            if isinstance(layer, BatchNorm) and synchronised:
                layer.total = _total
            if isinstance(layer, Dropout) and kind == "data":
                layer.whole = partial(self._place, BATCH, 0)
        ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(self.network, [*self.divided, *(["head.bias"] if self.divided else [])])  # that of the head is the same on all
        self.forward = DistributedDataParallel(self.network, forward_sync_buffers=False)
        self.forward.register_comm_hook(None, lambda _, bucket: _sum_each(bucket))

    def cuts(self, cuts: Cuts) -> list[tuple[int, int]]:
        """Return what this process sees of each batch."""
        return list(cuts) if self.kind == "towers" else share(cuts, self.group.rank, self.group.world)

    def targets(self, batch: Batch) -> Tensor:
        """Return the targets that belong to the logits which `forward` gives."""
        return self.group.gather(batch.targets, BATCH, self.images) if self.kind == "hybrid" else batch.targets

    def sum(self, *numbers: float) -> list[float]:
        """Return numbers that stand for this process's logits for all of the batch."""
        return self.group.sum(*numbers) if self.kind == "data" else list(numbers)

    def give(self) -> None:
        """Bring what was trained into `whole`; all processes call it. Where each has norms of its own, the first's count."""
        if self._own_norms:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)
        if self.network is not self.whole:
            theirs = self.whole.state_dict()
            for name, tensor in self.network.state_dict().items():
                theirs[name].copy_(self.gathered(name, tensor))

    def take(self) -> None:
        """Take this process's part of `whole`."""
        if self.network is not self.whole:
            ours = self.network.state_dict()
            for name, tensor in self.whole.state_dict().items():
                ours[name].copy_(self.part(name, tensor))

    def gathered(self, name: str, tensor: Tensor) -> Tensor:
        """Return all of a tensor that is divided as the network's `name` is."""
        dim = self.divided.get(name)
        if dim is None:
            return tensor
        total: int = self.whole.state_dict()[name].shape[dim]
        return self.group.gather(tensor, dim, total)

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """Return this process's part of a whole tensor that is divided as the network's `name` is."""
        dim = self.divided.get(name)
        return tensor if dim is None else self.group.cut(tensor, dim)

    def _place(self, dim: int, total: int, shape: Sequence[int]) -> tuple[Sequence[int], tuple[slice, ...]]:
        """Return the shape of what all processes have together, and where this one's lies; `total` 0: the batch's images."""
        whole = [*shape]
        whole[dim] = total or self.images
        return whole, (*[slice(None)] * dim, self.group.part(whole[dim]))


# Dividing a network.


def _towers(network: AlexNet, group: Group) -> int | None:
    if network.row.towers != group.world:
        raise RecipeError(
            f"--parallel towers gives each process one tower, but {network.row.name!r} has {network.row.towers} and there are "
            f"{group.world} processes: take --variant paper or code2012 with 2 processes, or --parallel data"
        )
    return None  # every process sees all images


def _hybrid(network: AlexNet) -> int | None:
    if not any(isinstance(layer, nn.Linear) for layer in network.features):
        raise RecipeError(f"--parallel hybrid divides hidden dense layers, and {network.row.name!r} has none: take data")
    return BATCH


def _divide(share: Share, held: int | None) -> dict[str, int]:
    """Divide the layers of `share.network`, with an exchange wherever one needs what others hold; return what is divided.

    `held` is the dimension along which the images that come in are divided, None if every process has them all.
    """
    network, group, towers = share.network, share.group, share.kind == "towers"
    layers, divided, channels = nn.Sequential(), dict[str, int](), 3
    for name, layer in network.features.named_children():
        needs_all = isinstance(layer, FlattenMaps | nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if needs_all and held is not None and (towers or not isinstance(layer, nn.Conv2d)):
            layers.add_module(f"exchange_{name}", Exchange(share, held, channels))
            held = None
        match layer:
            case nn.Conv2d() if towers:
                channels, held = layer.out_channels, UNITS
                _shrink(layer, group, divided, f"features.{name}", ("weight", "bias"))
                layer.out_channels = len(layer.weight)
                layer.in_channels, layer.groups = layer.in_channels // layer.groups, 1
            case nn.Linear():
                channels, held = layer.out_features, UNITS
                _shrink(layer, group, divided, f"features.{name}", ("weight", "bias"))
                layer.out_features = len(layer.weight)
            case BatchNorm() if towers:
                _shrink(layer, group, divided, f"features.{name}", ("weight", "bias", "running_mean", "running_var"))
                layer.num_features = len(layer.weight)
            case LocalResponseNorm() if towers:
                layer.towers = 1
            case Dropout() if held is not None:
                layer.whole = partial(share._place, held, channels if held == UNITS else 0)
        layers.add_module(name, layer)
    network.features = layers
    network.head = ExchangedHead(network.head, group)
    return divided | {"head.weight": UNITS}


def _shrink(layer: nn.Module, group: Group, divided: dict[str, int], prefix: str, names: Sequence[str]) -> None:
    """Leave of a layer's tensors the first dimension's part of this process."""
    for name in names:
        tensor = getattr(layer, name)
        if tensor is None:
            continue
        part = group.cut(tensor.detach(), 0).clone(memory_format=torch.preserve_format)
        setattr(layer, name, nn.Parameter(part) if isinstance(tensor, nn.Parameter) else part)
        divided[f"{prefix}.{name}"] = 0


class Exchange(nn.Module):
    """Gives every process what all have: maps N C H W or vectors N units, divided along the batch or along channels or units.

    Backwards every process gets the sum of the gradients of its own part.
    """

    def __init__(self, share: Share, dim: int, channels: int) -> None:
        super().__init__()
        self._share, self._dim, self._channels = [share], dim, channels  # in a list: it is no part of this module

    def forward(self, part: Tensor) -> Tensor:
        """Return the whole."""
        [share] = self._share
        total = share.images if self._dim == BATCH else self._channels
        result: Tensor = _Gather.apply(part, share.group, self._dim, total)  # type: ignore[no-untyped-call]
        return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, part: Tensor, group: Group, dim: int, total: int) -> Tensor:
        context.group, context.dim = group, dim
        return group.gather(part, dim, total)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return context.group.scatter(gradient, context.dim), None, None, None


class ExchangedHead(nn.Linear):
    """The last dense layer, of which a process has the columns of its own units: partial logits are summed."""

    def __init__(self, head: nn.Linear, group: Group) -> None:
        """Take this process's part of `head`."""
        nn.Module.__init__(self)
        self.weight = nn.Parameter(group.cut(head.weight.detach(), UNITS).clone())
        self.bias = nn.Parameter(head.bias.detach().clone())
        self.out_features, self.in_features = self.weight.shape

    def forward(self, units: Tensor) -> Tensor:
        """N x units of this process -> N x classes, the same on all."""
        partial_logits = linear(units, self.weight)
        wide = torch.promote_types(partial_logits.dtype, torch.float32)
        result: Tensor = _AddUp.apply(partial_logits.to(wide)) + self.bias  # type: ignore[no-untyped-call]
        return result


class _AddUp(torch.autograd.Function):
    """A sum over processes, of which all make the same: its gradient is there already."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return _total(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def _total(x: Tensor) -> Tensor:
    """Return `x` summed over the processes."""
    x = x.contiguous().clone()
    dist.all_reduce(x)
    return x


def _sum_each(bucket: Any) -> torch.futures.Future[Tensor]:
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
