"""Kernels in C++ for a CPU: compiled at first use where there is a compiler, and kept.

Where no compiler is found, on other systems than Linux, or with ALEXNET_KERNELS=0 in the environment, there are none, and
PyTorch's own operations do what they would.
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

import torch
from torch import Tensor

from alexnet.errors import error_reason
from alexnet.files import expanded, remove_leftovers, rename, temporary_name, user_cache
from alexnet.network.device import processor

SOURCES = sorted(file for kind in ("*.h", "*.cpp") for file in Path(__file__).parent.glob(kind))
# No -ffast-math: it would let the whole process flush small numbers to zero.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}  # what they take, and how their names end


def enabled() -> bool:
    """Tell whether fast forms may be used at all."""
    return os.environ.get("ALEXNET_KERNELS") != "0"


def library() -> ctypes.CDLL | None:
    """Return the compiled kernels; None where they cannot be had."""
    result = _library()
    return result if isinstance(result, ctypes.CDLL) else None


def missing_reason() -> str | None:
    """Return why there are no kernels on a system that could have them; None where there are, or where none are wanted."""
    result = _library()
    return result if isinstance(result, str) and sys.platform == "linux" and enabled() else None


@functools.cache
def _library() -> ctypes.CDLL | str:
    """Return the compiled kernels, or why there are none."""
    if sys.platform != "linux" or not enabled():
        return "they are for Linux, and not wanted with ALEXNET_KERNELS=0"
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None:
        return "no C++ compiler was found: c++, g++ or clang++"
    folder = expanded(os.environ.get("ALEXNET_CACHE") or user_cache()) / "kernels"
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20, check=True).stdout
        facts = f"{FLAGS} {sorted(processor().items())}".encode()
        digest = hashlib.sha256(b"".join([version, facts, *(file.read_bytes() for file in SOURCES)])).hexdigest()[:20]
        place = folder / f"{digest}.so"
        if not place.exists():
            _compile(compiler, place)
        remove_leftovers(place.parent)
        return ctypes.CDLL(str(place))
    except OSError as error:
        return f"{folder}: {error_reason(error)}"
    except subprocess.SubprocessError:
        return f"{compiler} could not compile them"


def _compile(compiler: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_name(place)
    sources = [str(file) for file in SOURCES if file.suffix == ".cpp"]
    try:
        subprocess.run([compiler, *FLAGS, *sources, "-o", str(part)], capture_output=True, timeout=120, check=True)
        rename(part, place)
    finally:
        part.unlink(missing_ok=True)


def has(name: str, kind: torch.dtype) -> bool:
    """Tell whether there is a kernel `name` for numbers of type `kind` here."""
    return hasattr(library(), f"{name}_{TYPES[kind]}")


def call(name: str, kind: torch.dtype, tensors: tuple[Tensor | None, ...], settings: ctypes.Structure) -> None:
    """Call the kernel `name` for numbers of type `kind`: the tensors' places in memory (None: a null), then the settings."""
    result = library()
    assert result is not None
    places = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    getattr(result, f"{name}_{TYPES[kind]}")(*places, settings)
