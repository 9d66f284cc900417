"""Where a training step's time goes, part by part, compared with the fastest that this machine allows.

The lower bound of a part is the larger of two times: its arithmetic at the speed of a large bfloat16 matrix product, and its
memory traffic at the speed of a copy; both speeds are measured here at the same time. Winograd convolutions need less
arithmetic, and can fall below their bound. If a recipe orthogonalises its steps (Muon), that arithmetic counts as dense layers.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import torch
from benchmarks.step import Case, ours
from benchmarks.turns import in_turn, timed
from torch import nn
from torch.profiler import ProfilerActivity, profile

import alexnet
from alexnet.network.device import keep_freed_memory
from alexnet.network.fast.fuse import fused_forms
from alexnet.recipe import load

CASES = (Case("cifar10", 32, 227), Case("cifar10", 128, 227), Case("fast", 256, 32, 4), Case("paper", 32, 227))
STEPS = 5
PARTS = {  # operations as the profiler names them
    "convolutions": ("convolution", "Winograd"),
    "dense layers": ("aten::mm", "addmm", "bmm", "matmul"),
    "ReLU, norms and pools": ("ReluNormPool", "ResponseNorm", "pool", "batch_norm", "relu", "threshold"),
    "step of the weights": ("Optimizer.step",),
}


def median_seconds(work: Callable[[], object]) -> float:
    """Return the median of ten runs, after two warm-up runs."""
    return statistics.median(in_turn({"": timed(work)}, 10, warm_up=2)[""])


def machine() -> tuple[float, float]:
    """Return the operations per second of a bfloat16 matrix product, and the bytes per second that a copy reads and writes."""
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    source, target = torch.randn(64_000_000), torch.empty(64_000_000)
    return 2 * 2048**3 / median_seconds(lambda: a @ b), 8 * source.numel() / median_seconds(lambda: target.copy_(source))


def floors(case: Case, rate: float, bandwidth: float) -> dict[str, float]:
    """Return the minimum seconds of each part, with bfloat16 maps and float32 weights that have a bfloat16 copy."""
    recipe = load(case.recipe)
    with torch.device("meta"):
        network = alexnet.AlexNet(recipe.model.variant, 10, **recipe.model.overrides)
        size = case.side * case.upscale
        maps = network.activations(torch.empty(1, 3, size, size), network.layer_names)[1]
    found = dict.fromkeys(PARTS, 0.0)
    for name, layer in network.layers.items():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            first = name == "conv1"
            weight = layer.weight[0].numel() // (16 if first and case.upscale > 1 else 1)  # folded: 3x3 instead of 11x11
            products = case.batch * maps[name].numel() * weight
            passes = 2 if first else 3  # forward, weights, input
            part = "convolutions" if isinstance(layer, nn.Conv2d) else "dense layers"
            read = layer.weight.numel() * 2 * 3 / bandwidth
            found[part] += max(2 * products * passes / rate, read)
        if isinstance(layer, nn.Conv2d):  # read twice and written pooled; read twice, with the gradient, and written
            found["ReLU, norms and pools"] += 6 * 2 * case.batch * maps[name].numel() / bandwidth
    moving = 20 if recipe.optimizer.momentum else 12  # bytes per weight: it and its velocity read and written, gradient, copy
    found["step of the weights"] = moving * sum(p.numel() for p in network.parameters()) / bandwidth
    return found


def measure(case: Case, rate: float, bandwidth: float) -> dict[str, float]:
    """Profile some steps, print a table, and return milliseconds by part."""
    step = ours(case, torch.device("cpu"))
    whole = median_seconds(step)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            step()
    least, taken = floors(case, rate, bandwidth), dict.fromkeys((*PARTS, "all else"), 0.0)
    for event in profiler.key_averages():
        part = next((part for part, names in PARTS.items() if any(name in event.key for name in names)), "all else")
        taken[part] += event.self_cpu_time_total / 1e6 / STEPS
    pace = f"{whole * 1e3:.0f} ms, {case.batch / whole:.1f} images/s"
    print(f"{case.recipe}, {case.batch} images of {case.side}x{case.side}: {pace}")
    for part, seconds in taken.items():
        floor = f"{least[part] * 1e3:8.1f} ms" if part in least else ""
        print(f"  {part:22} {seconds * 1e3:8.1f} ms   floor {floor}")
    return {part: seconds * 1e3 for part, seconds in taken.items()}


if __name__ == "__main__":
    keep_freed_memory()
    rate, bandwidth = machine()
    print(f"bfloat16 matrices {rate / 1e12:.2f} TFLOP/s, copies {bandwidth / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    results = {f"{case.recipe}, {case.batch}, {case.side}": measure(case, rate, bandwidth) for case in CASES}
    print(json.dumps({"benchmark": "breakdown", "fast_forms": fused_forms(torch.device("cpu")), **results}))
