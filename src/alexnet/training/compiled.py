"""The network compiled by PyTorch for training (`train.compile`), once for each shape of a batch; on CUDA, as CUDA graphs.

Our own kernels are left out: the layers are compiled as PyTorch's operations describe them. Random numbers are those of the
plain way, so dropout is the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.errors import AlexNetError, RecipeError, truncate

SHAPES = 1000  # to compile for; PyTorch gives up after 8, over all networks of a program
Forward = Callable[[Tensor, int], Tensor]


def compile_network(network: nn.Module, device: torch.device, processes: int) -> Forward:
    """Return the forward pass of a network, compiled; it compiles when it first sees a shape."""
    if processes > 1:
        raise RecipeError("train.compile is true, which needs a single process: leave out --processes, or set it to false")
    options: dict[str, Any] = {"fallback_random": True} | ({"triton.cudagraphs": True} if device.type == "cuda" else {})
    _check(device, options)
    compiled = torch.compile(lambda images, upscale: network(images, upscale), fullgraph=True, dynamic=False, options=options)

    def forward(images: Tensor, upscale: int) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch._dynamo.config.patch(recompile_limit=SHAPES, accumulated_recompile_limit=SHAPES):
            logits: Tensor = compiled(images, upscale)
        return logits

    return forward


def compiled_form(device: torch.device) -> str:
    """Return what PyTorch makes of a compiled network."""
    return "inductor, CUDA graphs" if device.type == "cuda" else "inductor"


def _check(device: torch.device, options: dict[str, Any]) -> None:
    try:
        torch.compile(lambda x: x + 1, options=options)(torch.zeros(8, device=device))
    except Exception as error:  # PyTorch, and the compilers that it calls, raise their own
        reason = truncate(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", 200)
        needed = "Triton" if device.type == "cuda" else "a C++ compiler"
        advice = f"install {needed}, or train without: --set train.compile=false"
        raise AlexNetError(
            f"train.compile is true, but PyTorch cannot compile for {device.type} here ({reason}): {advice}"
        ) from error
