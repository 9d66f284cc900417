"""The kernels as differentiable functions of tensors.

All take tensors that `usable` accepts.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from alexnet.network.fast import kernels
from alexnet.network.layers import BatchNorm


def traced(x: Tensor) -> bool:
    """Return whether PyTorch is tracing a tensor, to compile, export or transform what is done with it."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    return type(x) not in (Tensor, nn.Parameter) or torch._C._are_functorch_transforms_active()


def usable(x: Tensor) -> bool:
    """Return whether the kernels take this tensor: it is on a CPU, float32 or bfloat16, and not being traced."""
    return not traced(x) and x.device.type == "cpu" and x.dtype in kernels.TYPES and kernels.library() is not None


def _structure(name: str, declaration: str) -> type[ctypes.Structure]:
    """Return the structure `name` of a `.cpp` file, with fields as declared there: `long pixels, int size`."""
    fields = [(field, getattr(ctypes, f"c_{kind}")) for kind, field in map(str.split, declaration.split(","))]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


# The arguments of the C functions of maps.cpp, winograd.cpp, response_norm.cpp, dense.cpp and step.cpp.
_Maps = _structure("Maps", "long images, int height, int width, int channels, int window, int stride, int relu")
_Convolution = _structure("Convolution", "int images, int height, int width, int inputs, int outputs, int taps")
_Norm = _structure("Norm", "long pixels, int towers, int channels, int size, float alpha, float beta, float k, int relu")
_Dense = _structure("Dense", "int inputs, int outputs")
Step = _structure("Step", "long count, float rate, float momentum, float decay, int velocity, int decoupled, int nesterov")


def relu_norm_pool(x: Tensor, norm: BatchNorm | None, window: int, stride: int, *, relu: bool) -> Tensor:
    """Apply ReLU, batch normalisation and max pooling to N C H W in one pass; a window of 1 does not pool.

    In training, the moving statistics of `norm` are updated. In evaluation mode, there is no gradient through `norm`.
    """
    count, channels, height, width = x.shape
    maps = _Maps(count, height, width, channels, window, stride, relu)
    scale, shift = (None, None) if norm is None else (norm.weight, norm.bias)
    return _ReluNormPool.apply(x, scale, shift, norm, maps)  # type: ignore[no-any-return, no-untyped-call]


class _ReluNormPool(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, norm: BatchNorm | None, maps: ctypes.Structure
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        count, channels = maps.images * maps.height * maps.width, maps.channels
        factor = offset = mean = deviation = None
        if norm is not None:
            if norm.training:
                sums = torch.empty(2, channels, dtype=torch.float64)
                kernels.call("map_sums", x.dtype, (x, sums), maps)
                sums, count = _sum_over_processes(norm, sums, count)
                mean = sums[0] / count
                variance = (sums[1] / count - mean.square()).clamp_min(0)
                norm.track(mean, variance)
            else:
                mean, variance = norm.running_mean.double(), norm.running_var.double()
            deviation = (variance + norm.eps).sqrt()
            factor = (norm.weight / deviation).float()
            offset = (norm.bias - mean * norm.weight / deviation).float()
        pooled = [(side - maps.window) // maps.stride + 1 for side in (maps.height, maps.width)]
        shape = (maps.images, channels, *pooled)
        result = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        wanted = any(context.needs_input_grad) and maps.window > 1
        argmax = torch.empty_like(result, dtype=torch.uint8) if wanted else None
        kernels.call("map_forward", x.dtype, (x, factor, offset, result, argmax), maps)
        context.save_for_backward(x, argmax, scale, mean, deviation)
        context.maps, context.norm, context.count = maps, norm, count
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, argmax, scale, mean, deviation = context.saved_tensors
        maps = context.maps
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        to_scale = to_shift = factor = slope = offset = None
        if scale is not None:
            sums = torch.empty(2, maps.channels, dtype=torch.float64)
            kernels.call("map_gradient_sums", x.dtype, (x, gradient, argmax, sums), maps)
            to_shift, to_scale = sums[0], (sums[1] - mean * sums[0]) / deviation
            # dx = scale / deviation * (dy - mean of dy - normalised x * mean of (dy * normalised x)), linear in x and dy.
            # The sums are over all processes; the gradients of scale and shift above are only this process's part.
            factor = scale / deviation
            sums, _ = _sum_over_processes(context.norm, sums, 0)
            slope = -factor * (sums[1] - mean * sums[0]) / (context.count * deviation.square())
            offset = -factor * sums[0] / context.count - slope * mean
            factor, slope, offset = factor.float(), slope.float(), offset.float()
            to_scale, to_shift = to_scale.to(scale.dtype), to_shift.to(scale.dtype)
        result = torch.empty_like(x)
        kernels.call("map_backward", x.dtype, (x, gradient, argmax, factor, slope, offset, result), maps)
        return result, to_scale, to_shift, None, None


def _sum_over_processes(norm: BatchNorm, sums: Tensor, count: int) -> tuple[Tensor, float]:
    """Sum `sums` and `count` over the processes that share a batch, if there are several."""
    if norm.all_reduce is None:
        return sums, count
    result = norm.all_reduce(torch.cat([sums.flatten(), sums.new_tensor([count])]))
    return result[:-1].view_as(sums), result[-1].item()


def dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias for one vector, 1 x C float32, with weights O x C; without gradients."""
    x, weight = x.contiguous(), weight.contiguous()
    result = x.new_empty(1, len(weight))
    settings = _Dense(x.shape[1], len(weight))
    kernels.call("dense", x.dtype, (x, weight, None if bias is None else bias.contiguous(), result), settings)
    return result


LANE = 32  # channels that the convolutions process together


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    """Convolve N C H W with O C/groups K K, zero-padded to the same size: bfloat16, K 3 or 5; `bias` is O float32, or None.

    O/groups must be a multiple of 32; C/groups is padded to one with channels of zeros.
    """
    if groups == 1 and not x.shape[1] % LANE:
        return _Winograd.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    missing = -weight.shape[1] % LANE
    biases = [None] * groups if bias is None else bias.chunk(groups)
    parts = [
        convolve(pad(maps, (0, 0, 0, 0, 0, missing)), pad(kernels, (0, 0, 0, 0, 0, missing)), shift)
        for maps, kernels, shift in zip(x.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
    ]
    return torch.cat(parts, 1)


class _Winograd(torch.autograd.Function):
    """A Winograd convolution of maps N C H W with weights O C K K in bfloat16, and an optional bias in float32."""

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


def response_norm(images: Tensor, size: int, alpha: float, beta: float, k: float, towers: int, *, relu: bool) -> Tensor:
    """Normalise N C H W as `lrn.LocalResponseNorm` does, with one pass over memory each for forward and backward."""
    count, channels, height, width = images.shape
    norm = _Norm(count * height * width, towers, channels // towers, size, alpha, beta, k, relu)
    return _ResponseNorm.apply(images, norm)  # type: ignore[no-any-return, no-untyped-call]


class _ResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, norm: ctypes.Structure) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        context.save_for_backward(images)
        context.norm = norm
        result = torch.empty_like(images)
        kernels.call("norm_forward", images.dtype, (images, result), norm)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (images,) = context.saved_tensors
        gradient = gradient.to(images.dtype).contiguous(memory_format=torch.channels_last)
        result = torch.empty_like(images)
        kernels.call("norm_backward", images.dtype, (images, gradient, result), context.norm)
        return result, None
