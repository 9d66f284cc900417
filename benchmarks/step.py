"""A training step, alternating with the same network in plain PyTorch, in one process.

Plain is what a tutorial would contain: float32, channels first, `torch.optim.SGD` and `nn.LocalResponseNorm` with their
defaults. Ours is what `alexnet train` does with the recipe. Both get the same batches.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from benchmarks.turns import in_turn, ratios, spread, timed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

import alexnet
from alexnet.network.device import autocast, choose_device, keep_freed_memory, resolve_precision, to_device
from alexnet.network.fast.fuse import fused_forms, use_bf16_gradients
from alexnet.network.lrn import LocalResponseNorm
from alexnet.recipe import load
from alexnet.training.compiled import compile_network
from alexnet.training.loss_scale import LossScale
from alexnet.training.optimizer import build_optimizer

ROUNDS = 7
Step = Callable[[], object]


class Case(NamedTuple):
    """What to measure: a recipe, its batch size, and the factor by which its images of `side` pixels are upscaled.

    `variant` is another network than the recipe's, `width` the factor of its channels and units.
    """

    recipe: str
    batch: int
    side: int
    upscale: int = 1
    variant: str | None = None
    width: float = 1.0

    def network(self) -> alexnet.AlexNet:
        """Return the network, with ten classes."""
        model = load(self.recipe).model
        return alexnet.AlexNet(self.variant or model.variant, 10, width=self.width, **model.overrides)


CASES = (
    Case("fast", 256, 25, 4),
    Case("fast", 256, 32, 4),
    Case("cifar10", 32, 227),
    Case("cifar10", 128, 227),
    Case("paper", 32, 227),
)


def batch_of(case: Case, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images, N 3 S S with channels first, and targets."""
    images = torch.randn(case.batch, 3, case.side, case.side, device=device)
    return images, torch.randint(0, 10, (case.batch,), device=device)


def ours(case: Case, device: torch.device, *, compiled: bool = False) -> Step:
    """Return a step as `alexnet train` takes it; `compiled` as with `train.compile`."""
    recipe = load(case.recipe)
    network = to_device(case.network(), device)
    optimizer = build_optimizer(network, recipe.optimizer)
    precision = resolve_precision(device, recipe.train.precision)
    if precision == "bfloat16" and not compiled:
        use_bf16_gradients(network)
    scale = LossScale(device, 1) if precision == "float16" else None
    forward = compile_network(network, device, 1) if compiled else network
    images, targets = batch_of(case, device)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> object:
        with autocast(device, recipe.train.precision):
            logits = forward(images, case.upscale).float()
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(logits, targets)
        if scale is None:
            loss.backward()
            optimizer.step()
        else:
            scale.scaled(loss).backward()
            scale.step(optimizer)
        return loss.item()

    return step


def plain(case: Case, device: torch.device, precision: str = "float32") -> Step:
    """Return a step as in a tutorial, in float32 or in PyTorch's plain autocast."""
    recipe, network = load(case.recipe), case.network()
    for name, layer in network.features.named_children():
        if isinstance(layer, LocalResponseNorm):
            setattr(network.features, name, nn.LocalResponseNorm(layer.size, layer.alpha * layer.size, layer.beta, layer.k))
    layers = nn.Sequential(*network.layers.values()).to(device)  # only the layers, without our optimised implementations
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.01, momentum=recipe.optimizer.momentum)
    images, targets = batch_of(case, device)
    large = interpolate(images, scale_factor=float(case.upscale))
    return plain_step(layers, optimizer, large, targets, precision)


def plain_step(layers: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, precision: str) -> Step:
    """Return a training step in plain PyTorch."""

    def step() -> object:
        optimizer.zero_grad()
        with autocast(images.device, precision):
            logits = layers(images).float()
        loss = cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def measure(case: Case, device: torch.device) -> dict[str, float]:
    """Time the steps in turn, print a table, and return images per second and the ratio."""
    steps = {"ours": ours(case, device), "plain": plain(case, device)}
    times = in_turn({name: timed(step) for name, step in steps.items()}, ROUNDS, warm_up=2)
    size = f"{case.side}x{case.side}" + (f" enlarged {case.upscale} times" if case.upscale > 1 else "")
    print(f"{case.recipe}, {case.batch} images of {size} on {device}, {torch.get_num_threads()} threads")
    for name, found in times.items():
        print(f"  {name:6} {spread([case.batch / seconds for seconds in found], '.1f')} images/s")
    faster = ratios(times["plain"], times["ours"])
    print(f"  ours is {spread(faster)} times as fast")
    rates = {name: case.batch / statistics.median(found) for name, found in times.items()}
    return {**rates, "ratio": statistics.median(faster)}


if __name__ == "__main__":
    keep_freed_memory()
    where = choose_device()
    results = {f"{case.recipe}, {case.batch}, {case.side}": measure(case, where) for case in CASES}
    print(json.dumps({"benchmark": "step", "fast_forms": fused_forms(where), **results}))
