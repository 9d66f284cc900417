"""What the results apply to: versions, the GPU, its driver."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from proof.gpu import Row

from alexnet.network.device import choose_device, has_fast_bfloat16

LIBRARIES = ("numpy", "pillow", "pydantic", "safetensors", "captum", "faiss-cpu", "onnx", "onnxruntime")


def versions(device: str, folder: Path) -> Iterator[Row]:
    """Report the versions of Python, PyTorch and the libraries that steps need."""
    yield Row("Python, system, cores", f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()}")
    yield Row("PyTorch, CUDA, cuDNN", f"{torch.__version__}, {torch.version.cuda}, {torch.backends.cudnn.version()}")
    for name in LIBRARIES:
        try:
            yield Row(name, version(name))
        except PackageNotFoundError:
            yield Row(name, "not installed", "installed", False)


def accelerator(device: str, folder: Path) -> Iterator[Row]:
    """Report the device: its name, capability and memory, and whether it computes in bfloat16."""
    where = choose_device(device)
    yield Row("bfloat16 in hardware", str(has_fast_bfloat16(where)))
    if where.type == "cpu":
        return
    facts = torch.cuda.get_device_properties(where) if where.type == "cuda" else None
    if facts is not None:
        yield Row("GPU", f"{facts.name}, {facts.major}.{facts.minor}, {facts.total_memory / 2**30:.0f} GiB")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=30)
        yield Row("driver", found.stdout.strip().replace("\n", ", ") or "unknown")


CHECKS = (versions, accelerator)
