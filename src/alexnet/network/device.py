"""Where and in which precision the network computes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from typing import TypeVar

import torch
from torch import nn

from alexnet.errors import AlexNetError

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
        raise AlexNetError(f"no device {name!r} on this machine: {str(error).splitlines()[0]}") from error
    return device


def place(network: Network, device: torch.device) -> Network:
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


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 is computed by hardware: on a CPU by AMX or AVX-512 BF16, on CUDA from Ampere on."""
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return bool(found.get("amx_bf16") or found.get("avx512_bf16") or found.get("bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def choose_precision(device: torch.device, precision: str) -> str:
    """Return `float32` or `bfloat16`; `auto` is bfloat16 where hardware computes it."""
    return ("bfloat16" if has_fast_bfloat16(device) else "float32") if precision == "auto" else precision


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context to compute in, for a precision as `choose_precision` takes it."""
    if choose_precision(device, precision) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
