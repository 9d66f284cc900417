"""The Triton kernel of response normalisation: run by Triton's interpreter on the CPU, and compiled for GPUs.

The interpreter executes a kernel's statements in NumPy, so it checks what is computed. What a GPU makes of it is checked there,
by `make gpu`. `make test-long` installs Triton, which is large.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet.network.fast import gpu
from alexnet.network.fast.fuse import fused_forms
from alexnet.network.fast.kernels import operations
from alexnet.network.lrn import LocalResponseNorm
from commands import PROCESSES
from test_lrn import response_norm

NAME = "alexnet.network.fast.triton_norm"
# The interpreter truncates to bfloat16 and GPUs round, so it is allowed the distance between two neighbours, not half of it.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
CUDA = torch.device("cuda", 0)
MISSING = "Triton is not installed: its kernel was not run"


def loaded() -> ModuleType:
    """Return a new copy of the kernels' module, or skip the test without Triton."""
    pytest.importorskip("triton", reason=MISSING)
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def interpreted() -> Iterator[ModuleType]:
    """The kernels' module with the interpreter, which Triton chooses where a kernel is defined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        module = loaded()
        patch.setitem(sys.modules, NAME, module)
        yield module


@contextmanager
def chosen() -> Iterator[None]:
    """Let the layers use the kernel for tensors on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "usable", lambda images: False)
        patch.setattr(gpu, "usable", lambda images, size: True)
        yield


def drawn(generator: np.random.Generator, shape: tuple[int, ...], kind: torch.dtype, layout: str) -> torch.Tensor:
    """Return random maps N C H W, one in ten values 0, between values in memory that must not be read: NaN."""
    count, channels, height, width = shape
    rows = 2 * height if layout == "every other row" else height
    memory = torch.full((count * channels * rows * width + 64,), float("nan"), dtype=kind)[32:-32]
    if layout == "channels last":
        maps = memory.view(count, height, width, channels).permute(0, 3, 1, 2)
    else:
        maps = memory.view(count, channels, rows, width)[:, :, :: rows // height]
    return maps.copy_(torch.from_numpy(generator.standard_normal(shape) * 3 * (generator.random(shape) > 0.1)))


LAYOUTS = st.sampled_from(["channels last", "contiguous", "every other row"])
CASES = st.fixed_dictionaries(
    {
        "size": st.integers(1, 5),
        "constants": st.tuples(st.floats(1e-4, 1), st.one_of(st.just(0.75), st.floats(0.1, 2)), st.floats(0.5, 3)),
        "towers": st.integers(1, 3),
        "shape": st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5)),
        "kind": st.sampled_from(list(TOLERANCES)),
        "layouts": st.tuples(LAYOUTS, LAYOUTS),
        "relu": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)


def compare(case: dict[str, Any]) -> None:
    """Compare the layer on the kernel, in both directions, with NumPy in float64."""
    count, per_tower, height, width = case["shape"]
    shape, kind, generator = (
        (count, per_tower * case["towers"], height, width),
        case["kind"],
        np.random.default_rng(case["seed"]),
    )
    norm = LocalResponseNorm(case["size"], *case["constants"], towers=case["towers"])
    images, gradient = (drawn(generator, shape, kind, layout) for layout in case["layouts"])
    exact = images.double().numpy()
    positive = exact > 0 if case["relu"] else np.ones(shape, bool)
    expected, expected_gradient = response_norm(exact * positive, gradient.double().numpy(), norm)
    with chosen():
        result = norm(images.requires_grad_(), relu=case["relu"])
    (result_gradient,) = torch.autograd.grad(result, images, gradient)
    for found, wanted in ((result.detach(), expected), (result_gradient, expected_gradient * positive)):
        assert found.dtype == kind
        np.testing.assert_allclose(found.double().numpy(), wanted, rtol=TOLERANCES[kind], atol=TOLERANCES[kind] * 30)
    if case["layouts"][0] == "channels last":
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert result_gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.long
@pytest.mark.usefixtures("interpreted")
@given(CASES, st.integers(1, 8))
@settings(max_examples=1000)
def test_triton_response_norm_equals_numpy(case: dict[str, Any], size: int) -> None:
    compare({**case, "size": size})


@pytest.mark.long
@pytest.mark.usefixtures("interpreted")
def test_triton_response_norm_of_nan_under_autocast() -> None:
    norm = LocalResponseNorm(5, 1e-4, 0.75, 2.0)
    images = torch.ones(1, 8, 1, 1)
    images[0, 3] = float("nan")
    with chosen(), torch.autocast("cpu", torch.bfloat16):
        result = norm(images, relu=True)
    assert result.dtype == torch.float32
    assert torch.isnan(result.flatten()).tolist() == [channel in range(1, 6) for channel in range(8)], (
        "those with it in the window"
    )


@pytest.mark.long
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels last", "contiguous"])
def test_triton_response_norm_copies_neither_layout(layout: torch.memory_format) -> None:
    images = torch.randn(2, 4, 3, 5).contiguous(memory_format=layout).requires_grad_()
    with chosen():
        result = LocalResponseNorm(3, 1e-4, 0.75, 2.0)(images)
    assert result.stride() == images.stride()
    (saved,) = result.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert saved.data_ptr() == images.data_ptr()


# Compiled, which needs no GPU

TARGETS = [(80, "bf16", 1), (80, "fp32", 2), (90, "bf16", 1), (90, "fp16", 2), (90, "fp32", 1), (120, "bf16", 2)]


def compiled(capability: int, kind: str, step: int, cache: Path) -> list[tuple[str, str]]:
    """Return both kernels in Triton's representation for GPUs and in PTX, for a window of five channels."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    os.environ.pop("TRITON_INTERPRET", None)
    module = loaded()
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {
        "size": 5,
        "depth": 48,
        "relu": True,
        "paper": True,
        "block": module.BLOCK,
        **({"step": 1} if step == 1 else {}),
    }
    types = {"count": "i32", "step": "i32", **dict.fromkeys(("images", "gradient", "result"), f"*{kind}")}
    texts = []
    for kernel in (module._forward, module._backward):
        names = [parameter.name for parameter in kernel.params]
        signature = {name: "constexpr" if name in constants else types.get(name, "fp32") for name in names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        options = {"num_warps": module.WARPS, "enable_fp_fusion": True}
        found = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        texts.append((found.asm["ttgir"], found.asm["ptx"]))
    return texts


@pytest.mark.long
@pytest.mark.parametrize(("capability", "kind", "step"), TARGETS)
def test_triton_kernel_compiles(capability: int, kind: str, step: int, tmp_path: Path) -> None:
    """Each value is loaded once, though windows overlap, and results are rounded to nearest.

    In a process of its own, as the interpreter of older versions replaces parts of the language for good.
    """
    pytest.importorskip("triton", reason=MISSING)
    with ProcessPoolExecutor(1, mp_context=PROCESSES) as pool:
        texts = pool.submit(compiled, capability, kind, step, tmp_path).result()
    assert [text.count("tt.load") for text, _ in texts] == [5, 9 + 5]
    assert kind == "fp32" or all(re.search(r"cvt\.rn\.(bf16|f16)", ptx) for _, ptx in texts)


# Whether it is used


def test_triton_is_not_used_without_it_or_on_old_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = gpu.missing_reason.__wrapped__
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "triton" in reason(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert reason(CUDA) == "the GPU is older than Ampere"


@pytest.mark.long
def test_triton_is_used_only_if_it_computes_right(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = gpu.missing_reason.__wrapped__
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with torch.inference_mode():  # as in the first prediction
        before = torch.get_rng_state()
        assert reason(torch.device("cpu")) is None
        assert torch.equal(torch.get_rng_state(), before)
    backward = interpreted.backward
    monkeypatch.setattr(interpreted, "backward", lambda *given: backward(*given) + 1e-3)
    assert reason(torch.device("cpu")) == "it does not compute what PyTorch does"

    def fails(*given: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(interpreted, "forward", fails)
    assert reason(torch.device("cpu")) == "RuntimeError: Failed to find C compiler."


class OnGPU(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    device = property(lambda self: CUDA)  # type: ignore[assignment]


def test_triton_is_chosen_for_plain_tensors_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALEXNET_KERNELS", raising=False)
    monkeypatch.setattr(gpu, "missing_reason", lambda device: None)
    assert "response norm" in fused_forms(CUDA)
    maps = torch.ones(1, 4, 2, 2)
    assert not gpu.usable(maps, 5), "on a CPU"
    maps = maps.as_subclass(OnGPU)
    assert not gpu.usable(maps, 5), "not plain, like those that PyTorch traces"
    monkeypatch.setattr(gpu, "traced", lambda images: False)
    assert gpu.usable(maps, 5)
    assert not gpu.usable(maps.double(), 5)
    assert not gpu.usable(maps, gpu.LARGEST + 1)
    assert not gpu.usable(maps[:0], 5)
    monkeypatch.setattr(gpu, "missing_reason", lambda device: "the GPU is older than Ampere")
    assert not gpu.usable(maps, 5)
    assert "response norm" not in fused_forms(CUDA)
    monkeypatch.setattr(gpu, "missing_reason", lambda device: None)
    monkeypatch.setenv("ALEXNET_KERNELS", "0")
    assert not gpu.usable(maps, 5)
    assert fused_forms(CUDA) == []
