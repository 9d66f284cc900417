"""The Triton kernel of response normalisation: its results, in PyTorch's own operations in float64, and its time.

Without it, as on a CPU, the layer computes with PyTorch's operations, and the rows say why. The maps are those of the paper's
layers 1 and 2, channels last.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.turns import in_turn, ratios, spread, timed
from proof.gpu import Check, Row, at_most
from proof.gpu.training import on_cpu
from torch import Tensor, nn

from alexnet.network.device import choose_device
from alexnet.network.fast import gpu
from alexnet.network.fast.kernels import operations
from alexnet.network.lrn import LocalResponseNorm

MAPS = {"layer 1": (128, 96, 55, 55), "layer 2": (128, 256, 27, 27)}
ROUNDS, CALLS = 7, 10
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}  # most that it may be off, of the largest value
LARGE = (2**31 // (512 * 64 * 64) + 1, 512, 64, 64)  # more values than 32 bits can count


class Plain(LocalResponseNorm):
    """Ours in PyTorch's operations."""

    def forward(self, images: Tensor, *, relu: bool = False) -> Tensor:
        """N C H W -> the same."""
        usable = operations.usable, gpu.usable
        operations.usable, gpu.usable = lambda x: False, lambda images, size: False
        try:
            return super().forward(images, relu=relu)
        finally:
            operations.usable, gpu.usable = usable


def drawn(shape: tuple[int, ...], kind: torch.dtype, device: torch.device, layout: torch.memory_format) -> Tensor:
    """Return random maps."""
    return (torch.randn(shape, device=device) * 3).to(kind).contiguous(memory_format=layout)


def both(norm: nn.Module, images: Tensor, gradient: Tensor, relu: bool) -> list[Tensor]:
    """Return the result, and the gradient of the images."""
    images = images.detach().requires_grad_()
    result = norm(images, relu=relu)
    return [result.detach(), *torch.autograd.grad(result, images, gradient)]


def use(device: str, folder: Path) -> Iterator[Row]:
    """Say whether the kernel is used, and why not."""
    if on_cpu(device):
        yield Row("Triton kernel", "not used: the device is a CPU")
        return
    reason = gpu.missing_reason(choose_device(device))
    yield Row("Triton kernel", f"not used: {reason}" if reason else "used", "used", reason is None)


def results(device: str, folder: Path) -> Iterator[Row]:
    """Compare with the plain form in float64, in all dtypes and both layouts, with and without a ReLU."""
    torch.manual_seed(0)
    where, batch = choose_device(device), 2 if on_cpu(device) else 16
    norm, odd = LocalResponseNorm(5, 1e-2, 0.75, 2.0, towers=2), LocalResponseNorm(4, 1e-2, 0.6, 1.0)
    for kind, share in ROUNDING.items():
        off = 0.0
        for layer, relu in ((norm, False), (norm, True), (odd, True)):
            for layout in (torch.channels_last, torch.contiguous_format):
                images, gradient = (drawn((batch, 96, 27, 27), kind, where, layout) for _ in range(2))
                exact = both(layer, images.double(), gradient.double(), relu)
                for found, wanted in zip(both(layer, images, gradient, relu), exact, strict=True):
                    off = max(off, float((found - wanted).abs().max() / wanted.abs().max()))
        yield at_most(f"response norm in {str(kind).removeprefix('torch.')}: off by", off, share)


def large(device: str, folder: Path) -> Iterator[Row]:
    """Compare the last image of a batch of more than 2^31 values with that image alone."""
    where, shape = choose_device(device), LARGE
    fits = where.type == "cuda" and gpu.missing_reason(where) is None
    if not fits or torch.cuda.mem_get_info(where)[0] < 10 * math.prod(shape):  # bytes: two maps of bfloat16, and some to spare
        shape = (2, *shape[1:])
    norm = LocalResponseNorm(5, 1e-2, 0.75, 2.0)
    images = torch.empty(shape, dtype=torch.bfloat16, device=where, memory_format=torch.channels_last).zero_()
    images[-1] = drawn((1, *shape[1:]), images.dtype, where, torch.channels_last)[0]
    with torch.no_grad():
        same = bool(torch.equal(norm(images)[-1:], norm(images[-1:])))
    yield Row(f"the last of {images.numel():,} values", "the same" if same else "others", "the same as of one image", same)


def passes(norm: nn.Module, images: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Return a forward and backward pass, which ends when the device has computed it."""
    images = images.detach().requires_grad_()

    def run() -> None:
        images.grad = None
        torch.autograd.backward(norm(images), gradient)
        if images.device.type != "cpu":
            torch.accelerator.synchronize()

    return run


def time_of(name: str) -> Check:
    """Return the check that times a layer's maps in bfloat16, alternating with our plain form and PyTorch's norm."""

    def check(device: str, folder: Path) -> Iterator[Row]:
        where, shape, kind, rounds, calls = choose_device(device), MAPS[name], torch.bfloat16, ROUNDS, CALLS
        if on_cpu(device):  # where PyTorch's has no bfloat16
            shape, kind, rounds, calls = (2, *shape[1:]), torch.float32, 2, 1
        images, gradient = (drawn(shape, kind, where, torch.channels_last) for _ in range(2))
        norm = LocalResponseNorm(5, 1e-4, 0.75, 2.0)
        plain = Plain(norm.size, norm.alpha, norm.beta, norm.k)
        torchs = nn.LocalResponseNorm(norm.size, norm.alpha * norm.size, norm.beta, norm.k)
        ways = {"ours": norm, "plain": plain, "PyTorch's": torchs}
        work = {way: timed(passes(layer, images, gradient), calls) for way, layer in ways.items()}
        times = in_turn(work, rounds, warm_up=2)
        found = ", ".join(f"{statistics.median(seconds) * 1e3:.3f}" for seconds in times.values())
        yield Row(f"{name}, {shape[0]} images: ours, plain, PyTorch's, ms", found)
        for way in ("plain", "PyTorch's"):
            yield Row(f"{name}: ours is so many times as fast as {way}", spread(ratios(times[way], times["ours"])))

    check.__name__ = name.replace(" ", "_")
    return check


CHECKS = (use, results, large, *(time_of(name) for name in MAPS))
