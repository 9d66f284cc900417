"""Devices: choose one, its precision, memory and reproducibility."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from alexnet.errors import AlexNetError, truncate

Network = TypeVar("Network", bound=nn.Module)

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # in the environment

if hasattr(os, "register_at_fork"):
    # OpenMP's threads do not survive a fork: a child that used several would hang. PyTorch's DataLoader does the same.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def choose_device(name: str | None = None) -> torch.device:
    """Return the device `name`; by default this machine's accelerator, or else the CPU."""
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # backends raise different types
        raise AlexNetError(f"no device {str(name)!r} on this machine: {truncate(str(error).splitlines()[0], 200)}") from error
    return device


def to_device(network: Network, device: torch.device) -> Network:
    """Move a network to `device` in its memory format, and return it."""
    network.to(device, memory_format=memory_format(device))  # type: ignore[call-overload]  # torch's own stubs lack it
    return network


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the memory format of weights and maps: channels last, but not on MPS.

    There, up to PyTorch 2.12, gradients of batch norms in channels last are wrong and those of pooling crash
    (pytorch/pytorch 175189 and 175190), and those of convolutions take 12 times as long (193349).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def in_its_format(maps: Tensor) -> Tensor:
    """Return a network's input in a memory format that its device can compute with: any, but on MPS."""
    return maps.contiguous() if memory_format(maps.device) == torch.contiguous_format else maps


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`, without waiting for it where that is safe.

    MPS would read the tensor later, when its memory may hold other values (pytorch/pytorch 189690).
    """
    return tensor.to(device, non_blocking=device.type != "mps")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse; with another C library, do nothing.

    Each step frees and reallocates about 700 MB of gradients and casts. By default glibc returns such blocks to the system,
    which fills new ones with zeros, page by page: a seventh of the step's time (docs/log.md).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX and M_TRIM_THRESHOLD: never return memory to the system
            libc.mallopt(option, value)


def give_back_memory() -> None:
    """Return freed memory to the system, if the C library is glibc; else do nothing.

    glibc raises its threshold after large blocks, up to 32 MB, and keeps smaller ones: a server would never release the memory
    of large uploads.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def processor() -> dict[str, Any]:
    """Return the features of the CPU by name, such as `avx512_bf16`: from PyTorch, or before 2.11 from the system."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    known = dict.fromkeys(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []), True)
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {**known, "cpu_name": name}


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware computes in bfloat16: a CPU with AMX or AVX-512 BF16, or a GPU from Ampere on."""
    if device.type == "cpu":
        features = processor()
        return bool(features.get("amx_bf16") or features.get("avx512_bf16") or features.get("bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def resolve_precision(device: torch.device, precision: str) -> str:
    """Return `float32`, `bfloat16` or `float16`; `auto` is bfloat16 if the hardware computes in it, or else float16 on CUDA."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_fast_bfloat16(device) else "float16" if device.type == "cuda" else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return a context manager that computes in `precision`: `float32`, `bfloat16`, `float16` or `auto`."""
    if (resolved := resolve_precision(device, precision)) != "float32":
        return torch.autocast(device.type, getattr(torch, resolved))
    return contextlib.nullcontext() if device.type == "cpu" else _disable_tf32()


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Make training bit-identical between runs on the same device, and compute float32 in full precision.

    CPUs need neither. GPUs add up sums in any order unless deterministic algorithms are enabled. All settings are restored.
    """
    if device.type == "cpu":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, fill, workspace = cudnn.benchmark, memory.fill_uninitialized_memory, os.environ.get(CUBLAS)
    os.environ[CUBLAS] = workspace or ":4096:8"  # makes cuBLAS deterministic; read when it starts
    torch.use_deterministic_algorithms(True, warn_only=True)  # operations without such an algorithm still run
    cudnn.benchmark = False  # it would choose algorithms by measured time
    memory.fill_uninitialized_memory = False  # slow, and no uninitialized memory is read
    try:
        with _disable_tf32():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, memory.fill_uninitialized_memory = benchmark, fill
        if workspace is None:
            del os.environ[CUBLAS]


def backend_settings(device: torch.device) -> dict[str, Any]:
    """Return the settings of `reproducible` by PyTorch's names, as they are; none of a CPU."""
    if device.type == "cpu":
        return {}
    backends: Any = torch.backends
    return {
        "torch.backends.cuda.matmul.fp32_precision": backends.cuda.matmul.fp32_precision,
        "torch.backends.cudnn.conv.fp32_precision": backends.cudnn.conv.fp32_precision,
        "torch.backends.cudnn.benchmark": backends.cudnn.benchmark,
        "torch.are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled(),
        CUBLAS: os.environ.get(CUBLAS),
    }


@contextlib.contextmanager
def _disable_tf32() -> Iterator[None]:
    """Compute float32 in full precision on NVIDIA GPUs, instead of rounding to TF32, with 10 of 23 mantissa bits.

    By default cuDNN's convolutions do that, and whoever calls may have asked for it in matrix products.
    """
    backends: Any = torch.backends
    parts = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [part.fp32_precision for part in parts]
    matmul = convolutions = None  # PyTorch's earlier names, which cannot be read where they contradict the others
    with contextlib.suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with contextlib.suppress(RuntimeError):
        convolutions = backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    for part in parts:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolutions is not None:
            backends.cudnn.allow_tf32 = convolutions
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


@contextlib.contextmanager
def seeded(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Seed PyTorch's and NumPy's global generators, and restore them afterwards, except that of MPS."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - libraries draw from it
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the device ran out of memory; not all backends raise `OutOfMemoryError`."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in ("out of memory", "ALLOC_FAILED"))


def free_memory(device: torch.device) -> int:
    """Return how many bytes of an accelerator's memory are free; 0 if it has none of its own, or does not say."""
    module: Any = getattr(torch, device.type, None)
    return int(module.mem_get_info(device)[0]) if hasattr(module, "mem_get_info") else 0


def release_memory() -> None:
    """Release the cached memory of the accelerator, if there is one."""
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()  # `torch.accelerator.empty_cache` fails on MPS up to PyTorch 2.12
