"""A training step of ours against the same network in plain PyTorch, taken in turn in one process.

Plain is what a tutorial would write: float32, channels first, `torch.optim.SGD` and `nn.LocalResponseNorm` as they come. Ours
is what `alexnet train` does with the recipe. Both see the same batches.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import alexnet
from alexnet.network.device import autocast, choose_device, keep_freed_memory, place
from alexnet.network.lrn import LocalResponseNorm
from alexnet.recipe import load
from alexnet.training.optimizer import build_optimizer

ROUNDS = 7


class Case(NamedTuple):
    """What to measure: a recipe, with a batch of its own if need be."""

    recipe: str
    batch: int


CASES = (Case("fast", 128), Case("cifar10", 32), Case("cifar10", 128), Case("paper", 32))


def ours(case: Case, device: torch.device) -> Callable[[], None]:
    """Return a step as `alexnet train` takes it."""
    recipe = load(case.recipe)
    network = place(alexnet.AlexNet(recipe.model.variant, 10), device)
    optimizer = build_optimizer(network, recipe.optimizer)
    size = recipe.images.input
    images = torch.randn(case.batch, size, size, 3, device=device).permute(0, 3, 1, 2)
    targets = torch.randint(0, 10, (case.batch,), device=device)

    def step() -> None:
        with autocast(device, recipe.train.precision):
            logits = network(images).float()
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(logits, targets).backward()
        optimizer.step()

    return step


def plain(case: Case, device: torch.device) -> Callable[[], None]:
    """Return a step as a tutorial writes it."""
    recipe = load(case.recipe)
    network = alexnet.AlexNet(recipe.model.variant, 10)
    for name, layer in network.features.named_children():
        if isinstance(layer, LocalResponseNorm):
            setattr(network.features, name, nn.LocalResponseNorm(layer.size, layer.alpha * layer.size, layer.beta, layer.k))
    network.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    size = recipe.images.input
    images = torch.randn(case.batch, 3, size, size, device=device)
    targets = torch.randint(0, 10, (case.batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(images), targets).backward()
        optimizer.step()

    return step


def measure(case: Case, device: torch.device) -> dict[str, float]:
    """Take the steps in turn, print a table, and return images a second and the ratio."""
    steps = {"ours": ours(case, device), "plain": plain(case, device)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first is a warm-up
                times[name].append(time.perf_counter() - start)
    print(f"{case.recipe}, {case.batch} images on {device}, {torch.get_num_threads()} threads")
    for name, found in times.items():
        rates = sorted(case.batch / seconds for seconds in found)
        print(f"  {name:6} {statistics.median(rates):6.0f} images/s, {rates[0]:.0f} to {rates[-1]:.0f}")
    ratios = [p / o for o, p in zip(times["ours"], times["plain"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"  ours is {ratio:.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f})")
    return {**{name: case.batch / statistics.median(found) for name, found in times.items()}, "ratio": ratio}


if __name__ == "__main__":
    keep_freed_memory()
    where = choose_device()
    results = {f"{case.recipe}, {case.batch}": measure(case, where) for case in CASES}
    print(json.dumps({"benchmark": "step", **results}))
