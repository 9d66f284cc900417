"""A training step of the recipe `fast` against the same network in plain PyTorch, taken in turn in one process.

Plain is what a tutorial would write: float32, channels first, `torch.optim.SGD` as it comes. Both see 128 images at the
recipe's input size.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

import alexnet
from alexnet.network.device import autocast, choose_device, place
from alexnet.recipe import load
from alexnet.training.optimizer import build_optimizer

ROUNDS, BATCH = 7, 128


def ours(device: torch.device, size: int) -> Callable[[], None]:
    """Return a step as `alexnet train` takes it."""
    recipe = load("fast")
    network = place(alexnet.AlexNet("cifar10", 10), device)
    optimizer = build_optimizer(network, recipe.optimizer)
    images = torch.randn(BATCH, size, size, 3, device=device).permute(0, 3, 1, 2)
    targets = torch.randint(0, 10, (BATCH,), device=device)

    def step() -> None:
        with autocast(device, recipe.train.precision):
            logits = network(images).float()
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(logits, targets).backward()
        optimizer.step()

    return step


def plain(device: torch.device, size: int) -> Callable[[], None]:
    """Return a step as a tutorial writes it."""
    network = alexnet.AlexNet("cifar10", 10).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, targets = torch.randn(BATCH, 3, size, size, device=device), torch.randint(0, 10, (BATCH,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(images), targets).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    where, side = choose_device(), load("fast").images.input
    steps = {"ours": ours(where, side), "plain": plain(where, side)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if where.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first is a warm-up
                times[name].append(time.perf_counter() - start)
    rates = {name: BATCH / statistics.median(found) for name, found in times.items()}
    print(f"{BATCH} images of {side}x{side} on {where}, {torch.get_num_threads()} threads")
    for name, found in times.items():
        print(f"{name:6} {rates[name]:6.0f} images/s, {BATCH / max(found):.0f} to {BATCH / min(found):.0f}")
    ratios = [p / o for o, p in zip(times["ours"], times["plain"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"ours is {ratio:.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f})")
    print(json.dumps({"benchmark": "step", "input": side, **rates, "ratio": ratio}))
