"""Exact fast forms, beneath the network: they compute what its layers say, to rounding, in fewer operations.

In PyTorch, on any device: an image enlarged pixel by pixel is folded into the first convolution, and maps that the first dense
layer would have enlarged are folded into its weights. On a CPU, with the kernels in C++ (kernels/): response normalisation;
ReLU, batch normalisation and pooling in one pass; convolutions in fewer products (Winograd) where bfloat16 is computed in
AVX-512; a copy of the weights in bfloat16 that the optimizer's step keeps up to date.
ALEXNET_KERNELS=0 in the environment switches all of them off. Which are in use stands in `environment.json`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, linear
from torch.utils.weak import WeakTensorKeyDictionary

from alexnet.network import kernels
from alexnet.network.layers import BatchNorm, FlattenMaps

Step = Callable[[Tensor], Tensor]


def enabled() -> bool:
    """Tell whether fast forms may be used at all."""
    return os.environ.get("ALEXNET_KERNELS") != "0"


def fast_forms(device: torch.device) -> list[str]:
    """Return the fast forms in use on a device."""
    if not enabled():
        return []
    found = ["folded enlargement", "folded pooling"]
    if device.type == "cpu" and kernels.library() is not None:
        found += ["response norm", "ReLU, norm and pool", "step", "bfloat16 weights"]
        found += ["Winograd convolutions"] if has_winograd() else []
    return found


def usable(x: Tensor) -> bool:
    """Tell whether the kernels take this tensor: on a CPU, float32 or bfloat16, and not only traced."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    traced = traced or type(x) not in (Tensor, nn.Parameter)
    return x.device.type == "cpu" and x.dtype in kernels.TYPES and not traced and kernels.library() is not None


def joined(layers: Mapping[str, nn.Module], names: Collection[str], enlarge: int) -> Iterator[tuple[str, Step]]:
    """Yield the layers, by name and in order, as functions of a tensor; those that one form takes together as one, by the last.

    Layers in `names` end such a group, as somebody wants to see what they give; where a layer has hooks, nothing is joined.
    The images are to be enlarged `enlarge` times.
    """
    if enlarge > 1:
        first, conv = next(iter(layers.items()))
        if enabled() and isinstance(conv, nn.Conv2d) and conv.stride == (enlarge, enlarge) and conv.padding == (0, 0):
            layers = {first: _Enlarged(conv), **{name: layer for name, layer in layers.items() if name != first}}
        else:
            yield "", partial(interpolate, scale_factor=enlarge, mode="nearest-exact")
    waiting = list(layers.items())
    plain = not enabled() or any(_has_hooks(layer) for layer in layers.values())
    while waiting:
        group = [waiting.pop(0)]
        if not plain:
            while waiting and group[-1][0] not in names and _goes_on([layer for _, layer in group], waiting[0][1]):
                group.append(waiting.pop(0))
        yield group[-1][0], _form([layer for _, layer in group], plain)


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


ORDER = (nn.ReLU, BatchNorm, nn.MaxPool2d)  # of what one pass over the maps takes


def _goes_on(group: list[nn.Module], layer: nn.Module) -> bool:
    """Tell whether `layer` joins the group before it."""
    if isinstance(group[-1], FlattenMaps):
        return isinstance(layer, nn.Linear)
    place = [i for i, kind in enumerate(ORDER) if isinstance(group[-1], kind)]
    return bool(place) and isinstance(layer, ORDER[place[0] + 1 :])


def _form(group: list[nn.Module], plain: bool) -> Step:
    match group:
        case [layer] if plain:
            return layer
        case [FlattenMaps() as flatten, nn.Linear() as dense]:
            return partial(_flatten_dense, flatten, dense)
        case [nn.Conv2d() as conv]:
            return partial(_convolve, conv)
        case [nn.Linear() as dense]:
            return partial(_dense, dense)
        case [*_, BatchNorm() | nn.MaxPool2d()]:
            return partial(_relu_norm_pool, group)
        case [layer]:
            return layer
    raise AssertionError(group)


# Weights in bfloat16.

_halves: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter -> (its state, its values in bfloat16)


def weight_of(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Return the layer's weights to compute with: in bfloat16 and already converted, where autocast would convert them."""
    if not usable(x) or layer.weight.dtype != torch.float32 or layer.weight.is_inference():
        return layer.weight
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return layer.weight
    result: Tensor = _Half.apply(layer.weight)  # type: ignore[no-untyped-call]
    return result


class _Half(torch.autograd.Function):
    """A parameter in bfloat16. Its gradient stays in bfloat16 if the parameter's `grad_dtype` allows it."""

    @staticmethod
    def forward(context: Any, weight: Tensor) -> Tensor:
        kept = _halves.get(weight)  # type: ignore[no-untyped-call]
        if kept is None or kept[0] != _state(weight):
            with torch.inference_mode(False):  # it may be trained with later
                kept = _halves[weight] = (_state(weight), weight.detach().to(torch.bfloat16))
        half: Tensor = kept[1]
        return half.detach()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def narrow_gradients(network: nn.Module) -> None:
    """Let the weights' gradients stay in bfloat16, as they come where that is computed in; `step` takes them so."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and usable(layer.weight):
            layer.weight.grad_dtype = torch.bfloat16


def _state(weight: Tensor) -> tuple[int, int, tuple[int, ...]]:
    """Return what changes when a parameter is given other values, or another place for them."""
    return weight._version, weight.data_ptr(), weight.stride()


# Layers.


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    weight = weight_of(conv, x)
    if weight.dtype == torch.bfloat16 and _takes_winograd(conv) and 0 not in x.shape:
        result: Tensor = _Winograd.apply(x, weight, conv.bias)  # type: ignore[no-untyped-call]
        return result
    return conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _dense(dense: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, weight_of(dense, x), dense.bias)


def has_winograd() -> bool:
    """Tell whether this processor is one for Winograd's convolutions: bfloat16 in AVX-512, and no AMX, which outruns them."""
    found = torch.cpu.get_capabilities()
    return kernels.has("winograd_forward", torch.bfloat16) and not found.get("amx_bf16")


def _takes_winograd(conv: nn.Conv2d) -> bool:
    size, (inputs, outputs) = conv.kernel_size[0], (conv.in_channels, conv.out_channels)
    same = size in (3, 5) and conv.stride == (1, 1) and conv.padding == (size // 2, size // 2)
    return same and conv.groups == 1 and inputs % 32 == outputs % 32 == 0 and max(inputs, outputs) <= 4096 and has_winograd()


class _Convolution(ctypes.Structure):
    """As `Convolution` in kernels/winograd.cpp."""

    _fields_ = [(name, ctypes.c_int) for name in ("images", "height", "width", "inputs", "outputs", "taps")]


class _Winograd(torch.autograd.Function):
    """A convolution in fewer products, of maps N C H W with weights O C K K in bfloat16 and a bias in float32 or none."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = (tensor.to(torch.bfloat16).contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
        count, inputs, height, width = x.shape
        settings = _Convolution(count, height, width, inputs, len(weight), weight.shape[2])
        shape = (count, len(weight), height, width)
        result = torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
        kernels.call("winograd_forward", torch.bfloat16, (x, weight, bias, result), settings)
        context.save_for_backward(x, weight)
        context.settings = settings
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        wanted = context.needs_input_grad
        gradient = gradient.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        to_x, to_weight = torch.empty_like(x), torch.empty_like(weight)
        if wanted[0]:
            kernels.call("winograd_input_gradient", torch.bfloat16, (gradient, weight, to_x), context.settings)
        if wanted[1]:
            kernels.call("winograd_weight_gradient", torch.bfloat16, (gradient, x, to_weight), context.settings)
        to_bias = gradient.sum((0, 2, 3), dtype=torch.float32) if wanted[2] else None
        return to_x if wanted[0] else None, to_weight if wanted[1] else None, to_bias


class _Enlarged(nn.Module):
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
    weight, (height, width) = weight_of(dense, maps), maps.shape[2:]
    if torch.is_grad_enabled() or not usable(maps) or dense.weight.is_inference():
        return flatten.fold(weight, height, width)
    state = (_state(dense.weight), height, width, weight.dtype)
    kept = _folds.get(dense.weight)  # type: ignore[no-untyped-call]
    if kept is None or kept[0] != state:
        kept = _folds[dense.weight] = (state, flatten.fold(weight, height, width))
    folded: Tensor = kept[1]
    return folded


class _Maps(ctypes.Structure):
    """As `Maps` in kernels/maps.cpp."""

    _fields_ = [
        *(("images", ctypes.c_long), ("height", ctypes.c_int), ("width", ctypes.c_int), ("channels", ctypes.c_int)),
        *(("window", ctypes.c_int), ("stride", ctypes.c_int), ("relu", ctypes.c_int)),
    ]


def _relu_norm_pool(group: list[nn.Module], x: Tensor) -> Tensor:
    """Apply the layers of `group`, in the order of `ORDER`, in one pass over the maps."""
    norm = next((layer for layer in group if isinstance(layer, BatchNorm)), None)
    pool = next((layer for layer in group if isinstance(layer, nn.MaxPool2d)), None)
    still = norm is not None and not norm.training and torch.is_grad_enabled()  # a norm whose statistics do not move
    odd = pool is not None and (pool.padding, pool.dilation, pool.ceil_mode) != (0, 1, False)
    if x.ndim != 4 or not usable(x) or still or odd or 0 in x.shape:
        for layer in group:
            x = layer(x)
        return x
    window = (1, 1) if pool is None else (pool.kernel_size, pool.stride)
    count, channels, height, width = x.shape
    maps = _Maps(count, height, width, channels, *window, any(isinstance(layer, nn.ReLU) for layer in group))
    scale, shift = (None, None) if norm is None else (norm.weight, norm.bias)
    result: Tensor = _ReluNormPool.apply(x, scale, shift, norm, maps)  # type: ignore[no-untyped-call]
    return result


class _ReluNormPool(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, norm: BatchNorm | None, maps: _Maps
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        count, channels = maps.images * maps.height * maps.width, maps.channels
        factor = offset = mean = deviation = None
        if norm is not None:
            assert scale is not None
            assert shift is not None
            if norm.training:
                sums = torch.empty(2, channels, dtype=torch.float64)
                kernels.call("map_sums", x.dtype, (x, sums), maps)
                mean = sums[0] / count
                variance = (sums[1] / count - mean.square()).clamp_min(0)
                norm.track(mean, variance)
            else:
                assert norm.running_mean is not None
                assert norm.running_var is not None
                mean, variance = norm.running_mean.double(), norm.running_var.double()
            deviation = (variance + norm.eps).sqrt()
            factor = (scale / deviation).float()
            offset = (shift - mean * scale / deviation).float()
        pooled = [(side - maps.window) // maps.stride + 1 for side in (maps.height, maps.width)]
        shape = (maps.images, channels, *pooled)
        result = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        wanted = any(context.needs_input_grad) and maps.window > 1
        place = torch.empty_like(result, dtype=torch.uint8) if wanted else None
        kernels.call("map_forward", x.dtype, (x, factor, offset, result, place), maps)
        context.save_for_backward(x, place, scale, mean, deviation)
        context.maps = maps
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, place, scale, mean, deviation = context.saved_tensors
        maps = context.maps
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        to_scale = to_shift = factor = slope = offset = None
        if scale is not None:
            sums = torch.empty(2, maps.channels, dtype=torch.float64)
            kernels.call("map_gradient_sums", x.dtype, (x, gradient, place, sums), maps)
            count = maps.images * maps.height * maps.width
            to_shift, to_scale = sums[0], (sums[1] - mean * sums[0]) / deviation
            # dx = scale / deviation * (dy - mean of dy - normalised x * mean of (dy * normalised x)), a line in x and dy
            factor = scale / deviation
            slope = -factor * to_scale / (count * deviation)
            offset = -factor * to_shift / count - slope * mean
            factor, slope, offset = factor.float(), slope.float(), offset.float()
            to_scale, to_shift = to_scale.to(scale.dtype), to_shift.to(scale.dtype)
        result = torch.empty_like(x)
        kernels.call("map_backward", x.dtype, (x, gradient, place, factor, slope, offset, result), maps)
        return result, to_scale, to_shift, None, None


class _Norm(ctypes.Structure):
    """As `Norm` in kernels/response_norm.cpp."""

    _fields_ = [
        *(("pixels", ctypes.c_long), ("towers", ctypes.c_int), ("channels", ctypes.c_int), ("size", ctypes.c_int)),
        *(("alpha", ctypes.c_float), ("beta", ctypes.c_float), ("k", ctypes.c_float)),
    ]


def response_norm(images: Tensor, size: int, alpha: float, beta: float, k: float, towers: int) -> Tensor:
    """Normalise N C H W as `lrn.LocalResponseNorm` does, forward and gradient in one pass each; `images` must be `usable`."""
    result: Tensor = _ResponseNorm.apply(images, (size, alpha, beta, k, towers))  # type: ignore[no-untyped-call]
    return result


class _ResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, constants: tuple[int, float, float, float, int]) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        context.save_for_backward(images)
        context.constants = constants
        result = torch.empty_like(images)
        kernels.call("norm_forward", images.dtype, (images, result), _norm(images, *constants))
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (images,) = context.saved_tensors
        gradient = gradient.to(images.dtype).contiguous(memory_format=torch.channels_last)
        result = torch.empty_like(images)
        kernels.call("norm_backward", images.dtype, (images, gradient, result), _norm(images, *context.constants))
        return result, None


def _norm(images: Tensor, size: int, alpha: float, beta: float, k: float, towers: int) -> _Norm:
    count, channels, height, width = images.shape
    return _Norm(count * height * width, towers, channels // towers, size, alpha, beta, k)


class _Step(ctypes.Structure):
    """As `Step` in kernels/step.cpp."""

    _fields_ = [
        *(("count", ctypes.c_long), ("rate", ctypes.c_float), ("momentum", ctypes.c_float), ("decay", ctypes.c_float)),
        *(("velocity", ctypes.c_int), ("decoupled", ctypes.c_int), ("nesterov", ctypes.c_int)),
    ]


def step(
    weight: Tensor,
    gradient: Tensor,
    velocity: Tensor | None,
    *,
    form: str,
    rate: float,
    momentum: float,
    decay: float,
    nesterov: bool,
) -> bool:
    """Take a step of `training.optimizer.SGD` in place, in one pass over memory; False where the kernel does not take it.

    The weights' copy in bfloat16, if there is one, becomes that of the new weights.
    """
    kept = _halves.get(weight)  # type: ignore[no-untyped-call]
    half = kept[1] if kept is not None and kept[0] == _state(weight) else None
    tensors = [tensor for tensor in (weight, gradient, velocity, half) if tensor is not None]
    # One run of memory each, all in the same order of axes: then the order does not matter.
    alike = all(t.stride() == weight.stride() and usable(t) for t in tensors) and weight.dtype == torch.float32
    if not alike or not torch.ops.aten.is_non_overlapping_and_dense(weight):
        return False
    settings = _Step(weight.numel(), rate, momentum, decay, form != "pytorch", form == "keras", nesterov)
    kernels.call("step", gradient.dtype, (weight, gradient, velocity, half), settings)
    torch.autograd.graph.increment_version(weight)
    if half is not None:
        _halves[weight] = (_state(weight), half)
    return True
