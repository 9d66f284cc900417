"""C++ kernels for the CPU, compiled at first use and cached.

Without a compiler, on systems other than Linux, or with ALEXNET_KERNELS=0 in the environment, PyTorch's own operations are used
instead.
"""

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

from alexnet.errors import RunError, error_reason
from alexnet.files import expand_user, remove_leftovers, user_cache, write
from alexnet.network.device import processor

SOURCES = sorted(file for kind in ("*.h", "*.cpp") for file in Path(__file__).parent.glob(kind))
# No -ffast-math: it would flush denormal numbers to zero in the whole process.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}  # dtypes, and the suffixes of the kernels' names


def enabled() -> bool:
    """Return whether fused forms are enabled."""
    return os.environ.get("ALEXNET_KERNELS") != "0"


def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None if they are not available."""
    result = _library()
    return result if isinstance(result, ctypes.CDLL) else None


def missing_reason() -> str | None:
    """Return why the kernels are not available; None if they are, if they are disabled, or if this is not Linux."""
    result = _library()
    return result if isinstance(result, str) and sys.platform == "linux" and enabled() else None


@functools.cache
def _library() -> ctypes.CDLL | str:
    """Return the compiled kernels, or why they are not available."""
    if sys.platform != "linux" or not enabled():
        return "this is not Linux, or ALEXNET_KERNELS=0 disables them"
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None:
        return "no C++ compiler was found: c++, g++ or clang++"
    folder = expand_user(os.environ.get("ALEXNET_CACHE") or user_cache()) / "kernels"
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20, check=True).stdout
        facts = f"{FLAGS} {sorted(processor().items())}".encode()
        digest = hashlib.sha256(b"".join([version, facts, *(file.read_bytes() for file in SOURCES)])).hexdigest()[:20]
        binary = folder / f"{digest}.so"
        if not binary.exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = [compiler, *FLAGS, *(str(file) for file in SOURCES if file.suffix == ".cpp"), "-o"]
            write(binary, lambda part: subprocess.run([*command, str(part)], capture_output=True, timeout=120, check=True))
        remove_leftovers(folder)
        return ctypes.CDLL(str(binary))
    except (OSError, RunError) as error:
        return f"{folder}: {error_reason(error)}"
    except subprocess.SubprocessError:
        return f"{compiler} could not compile them"


def has(name: str, kind: torch.dtype) -> bool:
    """Return whether the kernel `name` is available for a dtype."""
    return hasattr(library(), f"{name}_{TYPES[kind]}")


def call(name: str, kind: torch.dtype, tensors: tuple[Tensor | None, ...], settings: ctypes.Structure) -> None:
    """Call the kernel `name` for the dtype `kind` with pointers to the tensors (null for None) and the settings."""
    compiled = library()
    assert compiled is not None
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    getattr(compiled, f"{name}_{TYPES[kind]}")(*pointers, settings)
