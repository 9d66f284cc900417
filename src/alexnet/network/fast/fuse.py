"""Exact fast forms, beneath the network: they compute what its layers say, to rounding, in fewer operations.

In PyTorch, on any device: an image enlarged pixel by pixel is folded into the first convolution, and maps that the first dense
layer would have enlarged are folded into its weights. On a CPU, with the kernels in C++ (kernels/): ReLU and response
normalisation; ReLU, batch normalisation and pooling in one pass; convolutions in fewer products (Winograd) where bfloat16 is
computed in AVX-512; a copy of the weights in bfloat16 that the optimizer's step keeps up to date.
ALEXNET_KERNELS=0 in the environment switches all of them off. Which are in use stands in `environment.json`. The kernels have
first derivatives alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, linear
from torch.utils.weak import WeakTensorKeyDictionary

from alexnet.network.device import processor
from alexnet.network.fast import kernels
from alexnet.network.fast.kernels import enabled, operations
from alexnet.network.fast.kernels.operations import LANE, usable
from alexnet.network.layers import BatchNorm, FlattenMaps
from alexnet.network.lrn import LocalResponseNorm

Step = Callable[[Tensor], Tensor]


def fast_forms(device: torch.device) -> list[str]:
    """Return the fast forms in use on a device."""
    if not enabled():
        return []
    result = ["folded enlargement", "folded pooling"]
    if device.type == "cpu" and kernels.library() is not None:
        result += ["response norm", "ReLU, norm and pool", "step", "bfloat16 weights"]
        result += ["Winograd convolutions"] if supports_winograd() else []
    return result


class Plan:
    """Which layers of a network are computed together; made once for what is asked of it, until its layers change."""

    def __init__(self) -> None:
        self._made: tuple[tuple[object, ...], list[tuple[str, Step]]] = ((), [])  # together, as threads may share a network

    def steps(self, layers: Mapping[str, nn.Module], names: Collection[str], upscale: int) -> list[tuple[str, Step]]:
        """Return `fuse_layers` of the same arguments."""
        plain = not enabled() or any(map(_has_hooks, layers.values()))
        key = (*layers.values(), frozenset(names), upscale, plain)
        made_for, steps = self._made
        if key != made_for:
            steps = list(fuse_layers(layers, names, upscale, plain))
            self._made = (key, steps)
        return steps


def fuse_layers(
    layers: Mapping[str, nn.Module], names: Collection[str], upscale: int, plain: bool
) -> Iterator[tuple[str, Step]]:
    """Yield the layers, by name and in order, as functions of a tensor; fused ones as one, by the name of the last.

    Layers in `names` end a group, as their outputs are wanted; with `plain`, as where a layer has hooks, nothing is fused. The
    images are to be upscaled `upscale` times.
    """
    if upscale > 1:
        first, conv = next(iter(layers.items()))
        if not plain and type(conv) is nn.Conv2d and conv.stride == (upscale, upscale) and conv.padding == (0, 0):
            layers = {first: _Upscaled(conv), **{name: layer for name, layer in layers.items() if name != first}}
        else:
            yield "", partial(interpolate, scale_factor=upscale, mode="nearest-exact")
    waiting = list(layers.items())
    while waiting:
        group = [waiting.pop(0)]
        if not plain:
            while waiting and group[-1][0] not in names and _can_fuse([layer for _, layer in group], waiting[0][1]):
                group.append(waiting.pop(0))
        yield group[-1][0], _fused([layer for _, layer in group], plain)


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


ORDER = (nn.ReLU, BatchNorm, nn.MaxPool2d)  # of what one pass over the maps takes


def _can_fuse(group: list[nn.Module], layer: nn.Module) -> bool:
    """Tell whether `layer` joins the group before it."""
    if isinstance(group[-1], FlattenMaps):
        return type(layer) is nn.Linear
    if isinstance(layer, LocalResponseNorm):
        return isinstance(group[-1], nn.ReLU)
    place = [i for i, kind in enumerate(ORDER) if isinstance(group[-1], kind)]
    return bool(place) and isinstance(layer, ORDER[place[0] + 1 :])


def _fused(group: list[nn.Module], plain: bool) -> Step:
    match group:
        case [layer] if plain:
            return layer
        case [FlattenMaps() as flatten, nn.Linear() as dense]:
            return partial(_flatten_dense, flatten, dense)
        case [nn.Conv2d() as conv] if type(conv) is nn.Conv2d:  # no subclass: it may compute otherwise
            return partial(_convolve, conv)
        case [nn.Linear() as dense] if type(dense) is nn.Linear:
            return partial(_dense, dense)
        case [nn.ReLU(), LocalResponseNorm() as norm]:
            return partial(norm, relu=True)
        case [*_, BatchNorm() | nn.MaxPool2d()]:
            return partial(_relu_norm_pool, group)
        case [layer]:
            return layer
    raise AssertionError(group)


# Weights in bfloat16.

_bf16_cache: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter -> (its state, its values in bfloat16)


def compute_weight(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Return the layer's weights to compute with: in bfloat16 and already converted, where autocast would convert them."""
    weight = layer.weight
    if not usable(x) or weight.dtype != torch.float32 or weight.is_inference() or not isinstance(weight, nn.Parameter):
        return weight
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return weight
    result: Tensor = _ToBFloat16.apply(weight)  # type: ignore[no-untyped-call]
    return result


class _ToBFloat16(torch.autograd.Function):
    """A parameter in bfloat16. Its gradient stays in bfloat16 if the parameter's `grad_dtype` allows it."""

    @staticmethod
    def forward(context: Any, weight: Tensor) -> Tensor:
        kept = _bf16_cache.get(weight)  # type: ignore[no-untyped-call]
        if kept is None or kept[0] != _state(weight):
            with torch.inference_mode(False):  # it may be trained with later
                kept = _bf16_cache[weight] = (_state(weight), weight.detach().to(torch.bfloat16))
        half: Tensor = kept[1]
        return half.detach()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def use_bf16_gradients(network: nn.Module) -> None:
    """Let the weights' gradients stay in bfloat16, as they come where that is computed in; `step` takes them so."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and usable(layer.weight):
            layer.weight.grad_dtype = torch.bfloat16


def _state(weight: Tensor) -> tuple[object, ...]:
    """Return what changes when a parameter is given other values, or another place for them.

    Some of the values are looked at too, as what is done to `weight.data` leaves no other trace.
    """
    sample = weight.detach().as_strided((64,), (weight.numel() // 64,)) if weight.numel() >= 64 else weight.detach()
    return weight._version, weight.data_ptr(), weight.stride(), sample.double().sum().item()


# Layers.

PIXELS_FOR_WINOGRAD = 512  # in a batch; with fewer, transforming the weights takes longer than it saves


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    weight = compute_weight(conv, x)
    wide_bias = conv.bias is None or conv.bias.dtype == torch.float32
    enough = x.shape[0] * x.shape[2] * x.shape[3] >= PIXELS_FOR_WINOGRAD
    if weight.dtype == torch.bfloat16 and wide_bias and usable(x) and enough and _can_use_winograd(conv):
        return operations.convolve(x, weight, conv.bias, conv.groups)
    return conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _dense(dense: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, compute_weight(dense, x), dense.bias)


@functools.cache
def supports_winograd() -> bool:
    """Tell whether this processor is one for Winograd's convolutions: bfloat16 in AVX-512, and no AMX, which outruns them."""
    return kernels.has("winograd_forward", torch.bfloat16) and not processor().get("amx_bf16")


def _can_use_winograd(conv: nn.Conv2d) -> bool:
    size, inputs, outputs = conv.kernel_size[0], conv.in_channels // conv.groups, conv.out_channels // conv.groups
    same = size in (3, 5) and conv.stride == (1, 1) and conv.padding == (size // 2, size // 2)
    same = same and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    full = outputs % LANE == 0 and -inputs % LANE <= inputs // 3  # zeros are added to few channels only
    return same and full and max(inputs, outputs) <= 4096 and supports_winograd()


class _Upscaled(nn.Module):
    """A convolution of an image whose every pixel is first enlarged to stride x stride pixels.

    All pixels of such a block have the same value, so their weights are added up: a kernel of 11 with stride 4 sees 4, 4 and 3
    equal pixels a side, and becomes one of 3 with stride 1 on the small image.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """N C H W, not enlarged -> N O H' W'."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        cells = -(-kernel // stride)
        weight = self.conv.weight
        blocks = nn.functional.pad(weight, (0, cells * stride - kernel, 0, cells * stride - kernel))
        blocks = blocks.reshape(*weight.shape[:2], cells, stride, cells, stride).sum((3, 5))
        return conv2d(x, blocks.contiguous(memory_format=torch.channels_last), self.conv.bias, groups=self.conv.groups)


def _flatten_dense(flatten: FlattenMaps, dense: nn.Linear, maps: Tensor) -> Tensor:
    """Fold the enlargement of small maps into the weights that read them: maps of 2x2 in a grid of 6x6 read sums of 9."""
    if maps.shape[2] * maps.shape[3] >= flatten.grid**2:
        return _dense(dense, flatten(maps))
    return linear(flatten.vector(maps), _folded(flatten, dense, maps), dense.bias)


_folds: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter -> (its state and the fold's, its values folded)


def _folded(flatten: FlattenMaps, dense: nn.Linear, maps: Tensor) -> Tensor:
    """Return the folded weights; where no gradient is wanted, those of the last call: folding takes longer than an image."""
    weight, (height, width) = compute_weight(dense, maps), maps.shape[2:]
    if torch.is_grad_enabled() or not usable(maps) or dense.weight.is_inference():
        return flatten.fold(weight, height, width)
    state = (_state(dense.weight), height, width, weight.dtype)
    kept = _folds.get(dense.weight)  # type: ignore[no-untyped-call]
    if kept is None or kept[0] != state:
        kept = _folds[dense.weight] = (state, flatten.fold(weight, height, width))
    folded: Tensor = kept[1]
    return folded


def _relu_norm_pool(group: list[nn.Module], x: Tensor) -> Tensor:
    """Apply the layers of `group`, in the order of `ORDER`, in one pass over the maps."""
    norm = next((layer for layer in group if isinstance(layer, BatchNorm)), None)
    pool = next((layer for layer in group if isinstance(layer, nn.MaxPool2d)), None)
    still = norm is not None and not norm.training and torch.is_grad_enabled()  # a norm whose statistics do not move
    odd = pool is not None and (pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices) != (0, 1, False, False)
    if pool is not None and not odd:
        odd = not isinstance(pool.kernel_size, int) or pool.kernel_size > min(16, *x.shape[2:])  # a place is a byte
    if x.ndim != 4 or not usable(x) or still or odd or 0 in x.shape:
        for layer in group:
            x = layer(x)
        return x
    window, stride = (1, 1) if pool is None else (pool.kernel_size, pool.stride)
    assert isinstance(window, int)
    assert isinstance(stride, int)
    return operations.relu_norm_pool(x, norm, window, stride, relu=isinstance(group[0], nn.ReLU))


def step(weight: Tensor, gradient: Tensor, velocity: Tensor | None, **settings: Any) -> bool:
    """Take a step as `kernels.operations.step` does, and keep the weights' copy in bfloat16, if there is one, up to date."""
    kept = _bf16_cache.get(weight)  # type: ignore[no-untyped-call]
    half = kept[1] if kept is not None and kept[0] == _state(weight) else None
    done = operations.step(weight, gradient, velocity, half=half, **settings)
    if done and half is not None:
        torch.autograd.graph.increment_version(half)
        _bf16_cache[weight] = (_state(weight), half)
    return done
