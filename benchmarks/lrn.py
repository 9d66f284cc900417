"""Response normalisation, forward and backward, alternating with `torch.nn.LocalResponseNorm` in float32, in one process.

The maps are those of the paper's layers 1 and 2, batch 32, two towers. PyTorch gets its fastest layout, channels first and in
one tower; ours is channels last, in bfloat16 and in float32, with the kernels and with PyTorch's operations only.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import torch
from benchmarks.turns import in_turn, ratios, spread, timed
from torch import nn

from alexnet.network.device import keep_freed_memory
from alexnet.network.fast import kernels
from alexnet.network.fast.kernels import operations
from alexnet.network.lrn import LocalResponseNorm

ROUNDS, BATCH = 15, 32
MAPS = {"layer 1": (96, 55), "layer 2": (256, 27)}


def passes(norm: nn.Module, channels: int, side: int, kind: torch.dtype, layout: torch.memory_format) -> Callable[[], None]:
    """Return a forward and backward pass over random maps."""
    maps = torch.randn(BATCH, channels, side, side).to(kind).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.randn(BATCH, channels, side, side).to(kind).contiguous(memory_format=layout)

    def run() -> None:
        maps.grad = None
        torch.autograd.backward(norm(maps), gradient)

    return run


class Plain(LocalResponseNorm):
    """Ours without the kernels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """N C H W -> the same."""
        usable, operations.usable = operations.usable, lambda images: False
        try:
            return super().forward(images)
        finally:
            operations.usable = usable


if __name__ == "__main__":
    keep_freed_memory()
    found: dict[str, float] = {}
    for name, (channels, side) in MAPS.items():
        last, constants = torch.channels_last, (5, 1e-4, 0.75, 2.0)
        peer = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
        ways = {
            "peer": passes(peer, channels, side, torch.float32, torch.contiguous_format),
            "bfloat16": passes(LocalResponseNorm(*constants, towers=2), channels, side, torch.bfloat16, last),
            "float32": passes(LocalResponseNorm(*constants, towers=2), channels, side, torch.float32, last),
            "float32, no kernels": passes(Plain(*constants, towers=2), channels, side, torch.float32, last),
        }
        times = in_turn({way: timed(run) for way, run in ways.items()}, ROUNDS, warm_up=2)
        print(f"{name}: {BATCH} x {channels} x {side} x {side}, {torch.get_num_threads()} threads")
        for way, seconds in times.items():
            faster = ratios(times["peer"], seconds)
            found[f"{name}, {way}"] = statistics.median(faster)
            print(f"  {way:20} {statistics.median(seconds) * 1e3:7.1f} ms  {spread(faster, '.1f')} times PyTorch's float32")
    print(json.dumps({"benchmark": "lrn", "kernels": kernels.library() is not None, **found}))
