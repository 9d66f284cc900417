"""Fuse layers: compute the same results, up to rounding, in fewer operations.

On any device, in PyTorch: upscaling of the input is folded into the first convolution, and upscaling of small maps into the
first dense layer. On a CPU, with the C++ kernels of kernels/: ReLU with response normalisation; ReLU, batch normalisation and
pooling in one pass; Winograd convolutions, if the CPU computes bfloat16 with AVX-512; dense layers on one image in float32;
a bfloat16 copy of the weights that the optimizer step updates. On an NVIDIA GPU, with the Triton kernel of gpu.py: ReLU with
response normalisation. ALEXNET_KERNELS=0 in the environment disables all of them; `environment.json` lists those in use. The
kernels do not support second derivatives.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, linear
from torch.utils.weak import WeakTensorKeyDictionary

from alexnet.network.device import memory_format, processor
from alexnet.network.fast import gpu, kernels
from alexnet.network.fast.kernels import enabled, operations
from alexnet.network.fast.kernels.operations import LANE, usable
from alexnet.network.layers import BatchNorm, FlattenMaps
from alexnet.network.lrn import LocalResponseNorm

Layers = Mapping[str, nn.Module]
Step = Callable[[Tensor], Tensor]


def fused_forms(device: torch.device) -> list[str]:
    """Return the names of the fused forms in use on a device."""
    if not enabled():
        return []
    result = ["folded enlargement", "folded pooling"]
    if device.type == "cpu" and kernels.library() is not None:
        result += ["response norm", "ReLU, norm and pool", "dense layers", "step", "bfloat16 weights"]
        result += ["Winograd convolutions"] if supports_winograd() else []
    if device.type == "cuda" and gpu.missing_reason(device) is None:
        result += ["response norm"]
    return result


class Plan:
    """The fused layers of a network, cached until its layers or the arguments change."""

    def __init__(self) -> None:
        self._cached: tuple[tuple[object, ...], list[tuple[str, Step]]] = ((), [])  # key and steps: replaced atomically

    def steps(self, layers: Layers, names: Collection[str], upscale: int) -> list[tuple[str, Step]]:
        """Return the result of `fuse_layers`."""
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        plain = not enabled() or any(getattr(layer, hook) for layer in layers.values() for hook in hooks)
        if torch.compiler.is_compiling():  # a cache that changes would make PyTorch compile again
            return list(fuse_layers(layers, names, upscale, plain))
        key = (*layers.values(), frozenset(names), upscale, plain)
        cached_key, steps = self._cached
        if key != cached_key:
            steps = list(fuse_layers(layers, names, upscale, plain))
            self._cached = (key, steps)
        return steps


def fuse_layers(layers: Layers, names: Collection[str], upscale: int, plain: bool) -> Iterator[tuple[str, Step]]:
    """Yield functions of a tensor, in order: a layer or a group of fused layers, under the name of the last.

    A layer in `names` ends its group, as its output is needed. With `plain`, nothing is fused, as when a layer has hooks.
    `upscale` is the factor to upscale the images by first.
    """
    waiting = list(layers.items())
    if upscale > 1:
        name, conv = waiting[0]
        if not plain and type(conv) is nn.Conv2d and conv.stride == (upscale, upscale) and conv.padding == (0, 0):
            waiting.pop(0)
            yield name, partial(_convolve_upscaled, conv)
        else:
            yield "", partial(interpolate, scale_factor=upscale, mode="nearest-exact")
    while waiting:
        name, layer = waiting.pop(0)
        group = [layer]
        while not plain and waiting and name not in names and _can_fuse(group[-1], waiting[0][1]):
            name, layer = waiting.pop(0)
            group.append(layer)
        yield name, layer if plain else _fused(group)


ORDER = (nn.ReLU, BatchNorm, nn.MaxPool2d)  # layers that one pass over the maps can compute, in this order


def _can_fuse(before: nn.Module, layer: nn.Module) -> bool:
    """Return whether `layer` can be fused with the layer before it."""
    if isinstance(before, FlattenMaps):
        return type(layer) is nn.Linear
    if isinstance(layer, LocalResponseNorm):
        return isinstance(before, nn.ReLU)
    position = [i for i, kind in enumerate(ORDER) if isinstance(before, kind)]
    return bool(position) and isinstance(layer, ORDER[position[0] + 1 :])


def _fused(group: list[nn.Module]) -> Step:
    match group:
        case [FlattenMaps() as flatten, nn.Linear() as dense]:
            return partial(_flatten_dense, flatten, dense)
        case [nn.Conv2d() as conv] if type(conv) is nn.Conv2d:  # a subclass may compute something else
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


# Weights in bfloat16

_bf16_cache: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter -> (its state, its values in bfloat16)


def compute_weight(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Return the layer's weights, from the bfloat16 cache if autocast would convert them."""
    weight = layer.weight
    if not usable(x) or weight.dtype != torch.float32 or weight.is_inference() or not isinstance(weight, nn.Parameter):
        return weight
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return weight
    return _ToBFloat16.apply(weight)  # type: ignore[no-any-return, no-untyped-call]


class _ToBFloat16(torch.autograd.Function):
    """Convert a parameter to bfloat16; its gradient stays in bfloat16 if the parameter's `grad_dtype` allows it."""

    @staticmethod
    def forward(context: Any, weight: Tensor) -> Tensor:
        kept = _bf16_cache.get(weight)  # type: ignore[no-untyped-call]
        if kept is None or kept[0] != _state(weight):
            with torch.inference_mode(False):  # training may use the cached tensor later
                kept = _bf16_cache[weight] = (_state(weight), weight.detach().to(torch.bfloat16))
        half: Tensor = kept[1]
        return half.detach()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def use_bf16_gradients(network: nn.Module) -> None:
    """Keep the gradients of weights in bfloat16, which `step` accepts, instead of converting them to float32."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and usable(layer.weight):
            layer.weight.grad_dtype = torch.bfloat16


def _state(weight: Tensor) -> tuple[object, ...]:
    """Return a key that changes with the values or the memory of a parameter.

    It includes a sample of the values, as changes through `weight.data` leave no other trace.
    """
    sample = weight.detach().as_strided((64,), (weight.numel() // 64,)) if weight.numel() >= 64 else weight.detach()
    return weight._version, weight.data_ptr(), weight.stride(), sample.double().sum().item()


# Layers

PIXELS_FOR_WINOGRAD = 512  # per batch; with fewer, transforming the weights takes longer than it saves


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    weight = compute_weight(conv, x)
    wide_bias = conv.bias is None or conv.bias.dtype == torch.float32
    enough = x.shape[0] * x.shape[2] * x.shape[3] >= PIXELS_FOR_WINOGRAD
    if weight.dtype == torch.bfloat16 and wide_bias and usable(x) and enough and _can_use_winograd(conv):
        return operations.convolve(x, weight, conv.bias, conv.groups)
    return conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _dense(dense: nn.Linear, x: Tensor) -> Tensor:
    return _linear(x, compute_weight(dense, x), dense.bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a dense layer; in predictions of one image in float32, by the kernel, which reads the weights faster.

    PyTorch, too, rounds one vector otherwise than a batch; the kernel for several would make results depend on their number.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)
    fits = x.shape == (1, weight.shape[1])
    if fits and not plain and all(t.dtype == torch.float32 and usable(t) for t in tensors):
        return operations.dense(x, weight, bias)
    return linear(x, weight, bias)


@functools.cache
def supports_winograd() -> bool:
    """Return whether Winograd convolutions pay off on this CPU: it has bfloat16 in AVX-512, and no AMX, which is faster."""
    return kernels.has("winograd_forward", torch.bfloat16) and not processor().get("amx_bf16")


def _can_use_winograd(conv: nn.Conv2d) -> bool:
    size, inputs, outputs = conv.kernel_size[0], conv.in_channels // conv.groups, conv.out_channels // conv.groups
    same = size in (3, 5) and conv.stride == (1, 1) and conv.padding == (size // 2, size // 2)
    same = same and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    full = outputs % LANE == 0 and -inputs % LANE <= inputs // 3  # few channels of zeros need to be added
    return same and full and max(inputs, outputs) <= 4096 and supports_winograd()


def _convolve_upscaled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve images upscaled by the stride, from the images N C H W before upscaling.

    The pixels of a stride x stride block are equal, so their weights are added up: a kernel of 11 with stride 4 covers 4, 4 and
    3 equal pixels per side, and becomes a kernel of 3 with stride 1.
    """
    kernel, stride, weight = conv.kernel_size[0], conv.stride[0], conv.weight
    cells = -(-kernel // stride)
    blocks = nn.functional.pad(weight, (0, cells * stride - kernel, 0, cells * stride - kernel))
    blocks = blocks.reshape(*weight.shape[:2], cells, stride, cells, stride).sum((3, 5))
    return conv2d(x, blocks.contiguous(memory_format=memory_format(x.device)), conv.bias, groups=conv.groups)


def _flatten_dense(flatten: FlattenMaps, dense: nn.Linear, maps: Tensor) -> Tensor:
    """Fold the upscaling of small maps into the dense weights: for maps of 2x2 and a grid of 6x6, into sums of 9 weights."""
    if maps.shape[2] * maps.shape[3] >= flatten.grid**2:
        return _dense(dense, flatten(maps))
    return _linear(flatten.vector(maps), _folded(flatten, dense, maps), dense.bias)


# parameter -> dtype -> (key of the parameter's state and the maps, folded values); predictions alternate between two dtypes
_folds: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _folded(flatten: FlattenMaps, dense: nn.Linear, maps: Tensor) -> Tensor:
    """Return the folded weights, cached if no gradient is needed, as folding takes longer than the forward pass of an image."""
    weight, (height, width) = compute_weight(dense, maps), maps.shape[2:]
    if torch.is_grad_enabled() or not usable(maps) or dense.weight.is_inference():
        return flatten.fold(weight, height, width)
    state, by_dtype = (_state(dense.weight), height, width), _folds.setdefault(dense.weight, {})  # type: ignore[no-untyped-call]
    if weight.dtype not in by_dtype or by_dtype[weight.dtype][0] != state:
        by_dtype[weight.dtype] = (state, flatten.fold(weight, height, width))
    return by_dtype[weight.dtype][1]  # type: ignore[no-any-return]


def _relu_norm_pool(group: list[nn.Module], x: Tensor) -> Tensor:
    """Apply the layers of `group`, some of `ORDER`, in one pass over the maps."""
    norm = next((layer for layer in group if isinstance(layer, BatchNorm)), None)
    pool = next((layer for layer in group if isinstance(layer, nn.MaxPool2d)), None)
    frozen = norm is not None and not norm.training and torch.is_grad_enabled()
    unsupported = pool is not None and not _can_pool(pool, x.shape[2:])
    if x.ndim != 4 or not usable(x) or frozen or unsupported or 0 in x.shape:
        for layer in group:
            x = layer(x)
        return x
    window, stride = (1, 1) if pool is None else (pool.kernel_size, pool.stride)
    assert isinstance(window, int)
    assert isinstance(stride, int)
    return operations.relu_norm_pool(x, norm, window, stride, relu=isinstance(group[0], nn.ReLU))


def _can_pool(pool: nn.MaxPool2d, sizes: Sequence[int]) -> bool:
    """Return whether the kernel has this pooling: small square windows, without padding, each inside maps of these `sizes`."""
    window, stride = pool.kernel_size, pool.stride
    if (
        not isinstance(window, int)
        or not isinstance(stride, int)
        or (pool.padding, pool.dilation, pool.return_indices) != (0, 1, False)
    ):
        return False
    whole = not pool.ceil_mode or not any((size - window) % stride for size in sizes)
    return whole and window <= min(16, *sizes)  # it stores the position in a window as a byte


def step(
    weight: Tensor, grad: Tensor, velocity: Tensor | None, form: str, lr: float, momentum: float, decay: float, nesterov: bool
) -> bool:
    """Take a step of `training.optimizer.SGD` in place, in one pass over memory; return False if the tensors do not fit.

    The bfloat16 copy of the weights is updated too, if there is one.
    """
    kept = _bf16_cache.get(weight)  # type: ignore[no-untyped-call]
    half = kept[1] if kept is not None and kept[0] == _state(weight) else None
    tensors = [tensor for tensor in (weight, grad, velocity, half) if tensor is not None]
    # All are dense and have the same strides, so the kernel can treat them as flat arrays.
    alike = all(t.stride() == weight.stride() and usable(t) for t in tensors) and weight.dtype == torch.float32
    if not alike or not torch.ops.aten.is_non_overlapping_and_dense(weight):
        return False
    settings = operations.Step(weight.numel(), lr, momentum, decay, form != "pytorch", form == "keras", nesterov)
    kernels.call("step", grad.dtype, (weight, grad, velocity, half), settings)
    torch.autograd.graph.increment_version(weight)
    if half is not None:
        torch.autograd.graph.increment_version(half)
        _bf16_cache[weight] = (_state(weight), half)
    return True
