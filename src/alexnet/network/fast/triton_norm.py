"""Response normalisation across channels in Triton; `gpu.py` imports this where Triton is installed.

The kernels take maps as flat arrays in the order of memory. There, neighbouring channels are `step` values apart: 1 in maps
that are channels last, H * W in contiguous ones, so neither is copied. Each value is computed on its own, in the same order in
every run. `count` is the number of values, and `depth` the number of channels of a tower.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 512, 4  # values that one program computes, and its warps: four values per thread


@triton.jit  # type: ignore[untyped-decorator]
def _channels(start: tl.tensor, count: tl.tensor, step: tl.tensor, depth: tl.constexpr, block: tl.constexpr) -> tl.tensor:
    """Return the channel of each value from `start` on, within its tower of `depth`; far outside it from `count` on."""
    lanes = tl.arange(0, block)
    # Only `start` can need 64 bits, which are slow to divide.
    channels = ((start // step % depth).to(tl.int32) + ((start % step).to(tl.int32) + lanes) // step) % depth
    return tl.where(start + lanes < count, channels, -(2**20))


@triton.jit  # type: ignore[untyped-decorator]
def _load(
    here: tl.tensor, channels: tl.tensor, step: tl.tensor, offset: tl.constexpr, depth: tl.constexpr, relu: tl.constexpr
) -> tl.tensor:
    """Load what is `offset` channels after the pointers `here`, as float32, with `relu` after a ReLU; 0 outside the tower."""
    exists = (channels + offset >= 0) & (channels + offset < depth)
    values = tl.load(here + offset * step, mask=exists, other=0.0).to(tl.float32)
    if relu:
        values = tl.where(values < 0, 0.0, values)  # NaN stays NaN, as in nn.ReLU
    return values


@triton.jit  # type: ignore[untyped-decorator]
def _power(
    here: tl.tensor,
    channels: tl.tensor,
    step: tl.tensor,
    constants: tl.tuple,
    offset: tl.constexpr,
    size: tl.constexpr,
    depth: tl.constexpr,
    relu: tl.constexpr,
    paper: tl.constexpr,
) -> tl.tuple:
    """Return s ** -beta and 1 / s, for s = k + alpha * the sum of squares over the windows `offset` channels further on."""
    alpha, beta, k = constants
    total = 0.0
    for place in tl.static_range(offset - size // 2, offset - size // 2 + size):
        value = _load(here, channels, step, place, depth, relu)
        total += value * value
    s = k + alpha * total
    if paper:  # beta is 0.75, and square roots are faster than logarithms
        root = tl.rsqrt(s)
        return root * tl.sqrt(root), root * root
    return tl.exp2(-beta * tl.log2(s)), 1 / s


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["images", "result"])  # type: ignore[untyped-decorator]
def _forward(
    images: tl.tensor,
    result: tl.tensor,
    count: tl.tensor,
    step: tl.tensor,
    alpha: tl.tensor,
    beta: tl.tensor,
    k: tl.tensor,
    size: tl.constexpr,
    depth: tl.constexpr,
    relu: tl.constexpr,
    paper: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Compute x * s ** -beta."""
    start = tl.program_id(0).to(tl.int64) * block
    channels, lanes = _channels(start, count, step, depth, block), start + tl.arange(0, block)
    scale, _ = _power(images + lanes, channels, step, (alpha, beta, k), 0, size, depth, relu, paper)
    tl.store(result + lanes, _load(images + lanes, channels, step, 0, depth, relu) * scale, mask=channels >= 0)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["images", "gradient", "result"])  # type: ignore[untyped-decorator]
def _backward(
    images: tl.tensor,
    gradient: tl.tensor,
    result: tl.tensor,
    count: tl.tensor,
    step: tl.tensor,
    alpha: tl.tensor,
    beta: tl.tensor,
    k: tl.tensor,
    size: tl.constexpr,
    depth: tl.constexpr,
    relu: tl.constexpr,
    paper: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Compute g * s ** -beta - 2 * alpha * beta * x * the sum of g * x * s ** (-beta - 1) over all windows that have x."""
    start = tl.program_id(0).to(tl.int64) * block
    channels, lanes = _channels(start, count, step, depth, block), start + tl.arange(0, block)
    direct, through = 0.0, 0.0
    for offset in tl.static_range(1 + size // 2 - size, 1 + size // 2):  # the compiler loads once what windows share
        scale, inverse = _power(images + lanes, channels, step, (alpha, beta, k), offset, size, depth, relu, paper)
        scaled = _load(gradient + lanes, channels, step, offset, depth, False) * scale
        through += scaled * inverse * _load(images + lanes, channels, step, offset, depth, relu)
        if offset == 0:
            direct = scaled
    value = _load(images + lanes, channels, step, 0, depth, relu)
    slope = direct - 2 * alpha * beta * value * through
    if relu:
        slope = tl.where(value == 0, 0.0, slope)
    tl.store(result + lanes, slope, mask=channels >= 0)


class Norm(NamedTuple):
    """What a kernel needs besides tensors."""

    size: int
    alpha: float
    beta: float
    k: float
    depth: int
    relu: bool


def forward(images: Tensor, norm: Norm) -> Tensor:
    """Normalise N C H W, of either layout."""
    result = torch.empty_like(images)
    _launch(_forward, (images, result), norm)
    return result


def backward(images: Tensor, gradient: Tensor, norm: Norm) -> Tensor:
    """Return the gradient of the images from that of the result; both have the layout of the images."""
    result = torch.empty_like(images)
    _launch(_backward, (images, gradient, result), norm)
    return result


def _launch(kernel: Any, tensors: tuple[Tensor, ...], norm: Norm) -> None:
    images = tensors[0]
    count, step = images.numel(), 1 if layout(images) == torch.channels_last else images.shape[2] * images.shape[3]
    size, alpha, beta, k, depth, relu = norm
    with torch.cuda.device_of(images):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        kernel[(-(-count // BLOCK),)](
            *(*tensors, count, step, alpha, beta, k),
            **{"size": size, "depth": depth, "relu": relu, "paper": beta == 0.75, "block": BLOCK},
            **{"num_warps": WARPS, "enable_fp_fusion": True},  # fused multiply and add, the default of some versions only
        )


def layout(images: Tensor) -> torch.memory_format:
    """Return the memory format to compute N C H W in: its own, or channels last if it has neither."""
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if images.is_contiguous() and not channels_last else torch.channels_last


class ResponseNorm(torch.autograd.Function):
    """The kernels as a differentiable function of N C H W, with first derivatives only."""

    @staticmethod
    def forward(context: Any, images: Tensor, norm: Norm) -> Tensor:
        """Normalise N C H W. Keeps shape and dtype."""
        images = images.contiguous(memory_format=layout(images))
        context.save_for_backward(images)
        context.norm = norm
        return forward(images, norm)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the images."""
        (images,) = context.saved_tensors
        gradient = gradient.to(images.dtype).contiguous(memory_format=layout(images))
        return backward(images, gradient, context.norm), None
