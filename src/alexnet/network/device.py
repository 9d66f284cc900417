"""Where and in which precision the network computes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from alexnet.errors import AlexNetError, truncate

Network = TypeVar("Network", bound=nn.Module)

if hasattr(os, "register_at_fork"):
    # OpenMP's threads do not survive a fork, and a child that waits for them hangs; PyTorch's own DataLoader does the same.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def choose_device(name: str | None = None) -> torch.device:
    """Return the device called `name`, or the accelerator of this machine, or its CPU.

    Raises:
        AlexNetError: no such device here.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each backend says it in its own way
        raise AlexNetError(f"no device {str(name)!r} on this machine: {truncate(str(error).splitlines()[0], 200)}") from error
    return device


def to_device(network: Network, device: torch.device) -> Network:
    """Move a network to `device`, its convolutions' weights with channels last in memory, and return it."""
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own stubs lack it
    return network


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc; elsewhere do nothing.

    Each step frees and takes again some 700 MB of gradients and casts. glibc gives such blocks back to the system and the
    system fills new ones with zeros, a page at a time: a seventh of a step (docs/log.md).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX: no block of its own; M_TRIM_THRESHOLD: never give back
            libc.mallopt(option, value)


def give_back_memory() -> None:
    """Give back to the system what this process has freed, where the C library is glibc; elsewhere do nothing.

    Once glibc has seen blocks of up to 32 MB it keeps them for later: a server that was sent large files would for ever.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def processor() -> dict[str, Any]:
    """Return what the CPU has by name, such as `avx512_bf16`: what PyTorch tells, which before 2.11 is little."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    known = dict.fromkeys(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []), True)
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {**known, "cpu_name": name}


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 is computed by hardware: on a CPU by AMX or AVX-512 BF16, on CUDA from Ampere on."""
    if device.type == "cpu":
        result = processor()
        return bool(result.get("amx_bf16") or result.get("avx512_bf16") or result.get("bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def resolve_precision(device: torch.device, precision: str) -> str:
    """Return `float32` or `bfloat16`; `auto` is bfloat16 where hardware computes it."""
    return ("bfloat16" if has_fast_bfloat16(device) else "float32") if precision == "auto" else precision


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context to compute in, for a precision as `resolve_precision` takes it."""
    if resolve_precision(device, precision) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext() if device.type == "cpu" else _disable_tf32()


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Let the same training on the same device give the same bytes, and float32 be float32, as long as the context lasts.

    On a CPU both hold without it. Elsewhere sums are added up in any order unless deterministic algorithms are asked for.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts, which needs it for equal sums
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    tried, filled = cudnn.benchmark, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # what has no such algorithm on some device still runs
    cudnn.benchmark = False  # it would choose algorithms by the clock
    memory.fill_uninitialized_memory = False  # we read nothing that was not written
    try:
        with _disable_tf32():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, memory.fill_uninitialized_memory = tried, filled


@contextlib.contextmanager
def _disable_tf32() -> Iterator[None]:
    """Let convolutions in float32 use all of its bits: by default cuDNN rounds to TF32, which has 10 of its 23."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch makes it as it is imported
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether a device's memory was too small; not every backend has an exception of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in ("out of memory", "ALLOC_FAILED"))


def release_memory() -> None:
    """Give the accelerator's unused memory back to it, where there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()
