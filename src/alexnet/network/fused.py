"""Exact fast forms on a CPU: kernels in C++ (kernels.cpp), compiled at first use where there is a compiler, and kept.

They compute what the layers say, to rounding. Where no compiler is found, on other systems than Linux, on other devices, or
with ALEXNET_KERNELS=0 in the environment, PyTorch's own operations do; which it was stands in `environment.json`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pooch
import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
# No -ffast-math: it would let the whole process flush small numbers to zero.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels; None where they cannot be had."""
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None or sys.platform != "linux" or os.environ.get("ALEXNET_KERNELS") == "0":
        return None
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20, check=True).stdout
        facts = (SOURCE.read_bytes(), version, repr(FLAGS), repr(sorted(torch.cpu.get_capabilities().items())))
        digest = hashlib.sha256(b"".join(f if isinstance(f, bytes) else f.encode() for f in facts)).hexdigest()[:20]
        place = Path(os.environ.get("ALEXNET_CACHE") or pooch.os_cache("alexnet")).expanduser() / "kernels" / f"{digest}.so"
        if not place.exists():
            _compile(compiler, place)
        return ctypes.CDLL(str(place))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(compiler: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_suffix(f".{os.getpid()}.part")
    try:
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(part)], capture_output=True, timeout=120, check=True)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def fast_forms() -> tuple[str, ...]:
    """Return what kernels compute here."""
    return () if kernels() is None else ("response norm", "velocity step")


class _Norm(ctypes.Structure):
    """As `Norm` in kernels.cpp."""

    _fields_ = [
        *(("pixels", ctypes.c_long), ("towers", ctypes.c_int), ("channels", ctypes.c_int), ("size", ctypes.c_int)),
        *(("alpha", ctypes.c_float), ("beta", ctypes.c_float), ("k", ctypes.c_float)),
    ]


class _Step(ctypes.Structure):
    """As `Step` in kernels.cpp."""

    _fields_ = [
        *(("count", ctypes.c_long), ("rate", ctypes.c_float), ("momentum", ctypes.c_float), ("decay", ctypes.c_float)),
        *(("decoupled", ctypes.c_int), ("nesterov", ctypes.c_int)),
    ]


def usable(images: Tensor) -> bool:
    """Tell whether the kernels take this tensor: on a CPU, float32 or bfloat16."""
    return images.device.type == "cpu" and images.dtype in SUFFIXES and kernels() is not None


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
        _call("norm_forward", images, result, norm=_norm(images, *constants))
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (images,) = context.saved_tensors
        gradient = gradient.to(images.dtype).contiguous(memory_format=torch.channels_last)
        result = torch.empty_like(images)
        _call("norm_backward", images, gradient, result, norm=_norm(images, *context.constants))
        return result, None


def _norm(images: Tensor, size: int, alpha: float, beta: float, k: float, towers: int) -> _Norm:
    count, channels, height, width = images.shape
    return _Norm(count * height * width, towers, channels // towers, size, alpha, beta, k)


def _call(name: str, *tensors: Tensor, norm: _Norm) -> None:
    library = kernels()
    assert library is not None
    places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    getattr(library, f"{name}_{SUFFIXES[tensors[0].dtype]}")(*places, norm)


def velocity_step(
    weight: Tensor,
    gradient: Tensor,
    velocity: Tensor | None,
    *,
    rate: float,
    momentum: float,
    decay: float,
    decoupled: bool,
    nesterov: bool,
) -> bool:
    """Take a step of `VelocitySGD` in place, in one pass over memory; False where the kernel does not take these tensors."""
    tensors = [weight, gradient] if velocity is None else [weight, gradient, velocity]
    library = kernels()
    # One run of memory each, all in the same order of axes: then the order does not matter.
    same = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.stride() == weight.stride() for t in tensors)
    if library is None or not same or not torch.ops.aten.is_non_overlapping_and_dense(weight):
        return False
    places = [ctypes.c_void_p(t.data_ptr()) for t in tensors] + [ctypes.c_void_p()] * (3 - len(tensors))
    library.velocity_step(*places, _Step(weight.numel(), rate, momentum, decay, decoupled, nesterov))
    return True
