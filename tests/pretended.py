"""A device `mps` without one: it computes on the CPU, and refuses what PyTorch's MPS backend cannot do or does wrong.

float64 is refused, and so are operators without a kernel for MPS in PyTorch's own table, operators on tensors of two devices,
copies that do not wait (MPS reads the source later, though it may be freed), and maps in channels last before layers whose
gradients are wrong or crash in versions that we support (pytorch/pytorch 175189, 175190, 192212).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchgen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

MPS = torch.device("mps", 0)
WIDE = {torch.float64, torch.complex128}
COPIES = {"_to_copy", "copy_"}
PARTS = {"arange", "scalar_tensor"}  # made within operators, on the device that C++ sees
ROW = re.compile(r"^- func: (?:\w+::)?([\w.]+)\(.*\n((?:  .*\n|\n|#.*\n)*)", re.MULTILINE)


class OnDevice(Tensor):
    """A tensor that says it is on the device; `value` has its numbers, on the CPU. To PyTorch's C++ it is on `meta`."""

    value: Tensor
    device = property(lambda self: MPS)

    @staticmethod
    def __new__(cls, value: Tensor) -> OnDevice:
        if value.dtype in WIDE:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        shell = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        made = Tensor._make_subclass(cls, shell, False, device_for_backend_keys=MPS)
        made.value = value
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.value})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            return args[0].value.tolist()
        if func is Tensor.to and len(args) == 2 and isinstance(args[1], OnDevice):
            args = (args[0], MPS, args[1].dtype)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """Catches the functions that make tensors on the device, and those made of others (in inference mode, they come whole)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:
            parts = func.decompose(*args, **(kwargs or {}))
        return run(func, args, kwargs or {}) if parts is NotImplemented else parts


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator."""
    name, leaves = func.__name__, tree_leaves((args, kwargs))
    inside = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
    packet = func._schema.name.removeprefix("aten::")
    target = kwargs.get("device")
    there = target is not None and (target.type == "mps" or (target.type == "meta" and (bool(inside) or packet in PARTS)))
    if not inside and not there:
        return func(*args, **kwargs)
    if packet not in COPIES:
        outside = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, OnDevice) and leaf.ndim]
        assert not outside, f"{name} has tensors on the device and in main memory"
    elif kwargs.get("non_blocking") or (packet == "copy_" and len(args) > 2 and args[2]):
        raise AssertionError(f"{name} does not wait, and its source may be freed before it is read")
    check_kernel(func)
    check_format(packet, args)
    values = tree_map(lambda leaf: leaf.value if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
    if there:
        values[1]["device"] = torch.device("cpu")
    result = func(*values[0], **values[1])
    if target is not None and not there:
        return result
    given = {id(leaf.value): leaf for leaf in inside}  # what an operator changes in place is returned as it was given

    def wrapped(out: Any) -> Any:
        return given[id(out)] if id(out) in given else OnDevice(out) if isinstance(out, Tensor) else out

    return tree_map(wrapped, result)


@cache
def table() -> dict[str, str]:
    """Return the rows of PyTorch's table of operators, by name."""
    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    return dict(ROW.findall(path.read_text(encoding="utf-8")))


@cache
def check_kernel(func: Any) -> None:
    """Raise an error unless an operator has a kernel for MPS, or is made of others."""
    name = func._schema.name.removeprefix("aten::") + (f".{func._schema.overload_name}" if func._schema.overload_name else "")
    row = table()[name]
    if delegate := re.search(r"structured_delegate: ([\w.]+)", row):
        row += table()[delegate[1]]
    if "dispatch:" in row and not re.search(r"\b(MPS|Composite\w+)\b[\w, ]*:", row):
        raise NotImplementedError(f"The operator 'aten::{name}' is not currently implemented for the MPS device")


def check_format(packet: str, args: Any) -> None:
    """Raise an error if a layer has maps or weights in channels last."""
    if packet.startswith(("convolution", "native_batch_norm", "max_pool2d", "avg_pool2d")):
        for tensor in args[packet.endswith("backward") :]:  # not the gradient, which comes in any format
            if isinstance(tensor, OnDevice) and tensor.value.ndim == 4:
                assert tensor.value.is_contiguous(), f"{packet} has a tensor with strides {tensor.stride()}"


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Yield the pretended device."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # else modules keep their tensors, of another class
    try:
        with Pretended():
            yield MPS
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
