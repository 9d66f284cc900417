"""Images per second: training and inference, alternating with the same network in plain PyTorch, tuned for a GPU.

The peer uses channels last, autocast, PyTorch's own norms and its fused SGD; ours is what `alexnet train` does, with
deterministic algorithms.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.step import Case, batch_of, ours, plain_step
from benchmarks.turns import in_turn, ratios, spread, timed
from proof.gpu import Check, Row
from proof.gpu.training import on_cpu
from torch import nn
from torch.nn.functional import interpolate

import alexnet
from alexnet.data.preprocessing import to_input
from alexnet.inference.forward import predict_logits
from alexnet.network.device import autocast, choose_device, reproducible, to_device
from alexnet.network.layers import BatchNorm, Dropout
from alexnet.network.lrn import LocalResponseNorm
from alexnet.recipe import Preprocessing, load

CASES = (Case("fast", 256, 32, 4), Case("cifar10", 128, 227), Case("paper", 128, 227))
ROUNDS, CALLS = 7, 10
Work = Callable[[], object]


def peer_network(case: Case, device: torch.device) -> nn.Sequential:
    """Return a recipe's network with PyTorch's own layers in place of ours."""
    recipe = load(case.recipe)
    network = alexnet.AlexNet(recipe.model.variant, 10, **recipe.model.overrides)
    for name, layer in network.features.named_children():
        match layer:
            case LocalResponseNorm():
                other = nn.LocalResponseNorm(layer.size, layer.alpha * layer.size, layer.beta, layer.k)
                setattr(network.features, name, other)
            case BatchNorm():
                setattr(network.features, name, nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum))
            case Dropout():
                setattr(network.features, name, nn.Dropout(layer.p))
    layers = nn.Sequential(*network.layers.values())
    return to_device(layers, device)  # only the layers, without our optimised implementations


def peer_step(case: Case, device: torch.device) -> Work:
    """Return a training step of the peer."""
    recipe, layers = load(case.recipe), peer_network(case, device)
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.01, momentum=recipe.optimizer.momentum, fused=True)
    images, targets = batch_of(case, device)
    large = interpolate(images, scale_factor=float(case.upscale)).contiguous(memory_format=torch.channels_last)
    return plain_step(layers, optimizer, large, targets, recipe.train.precision)


def our_step(case: Case, device: torch.device) -> Work:
    """Return a training step of ours, as in `alexnet train`."""
    return reproducible(device)(ours(case, device))


def answering(case: Case, device: torch.device) -> tuple[Work, Work]:
    """Return our inference and the peer's, from uint8 images in main memory to logits there."""
    recipe = load(case.recipe)
    side, plain = case.side, {"fit": "crop", "reduced_decode": False, "resize": "bilinear"}
    preprocessing = Preprocessing(cache_size=side, input=side * case.upscale, upscale=case.upscale, **plain)  # type: ignore[arg-type]
    network = to_device(alexnet.AlexNet(recipe.model.variant, 10, **recipe.model.overrides), device).eval()
    layers = peer_network(case, device).eval()
    images = torch.randint(0, 256, (case.batch, side, side, 3), dtype=torch.uint8)

    def peer() -> object:
        with torch.inference_mode(), autocast(device, recipe.train.precision):
            x = interpolate(to_input(images.to(device), preprocessing), scale_factor=float(case.upscale))
            return layers(x).float().cpu()

    return lambda: predict_logits(network, images, preprocessing, recipe.train.precision), peer


def measured(case: Case) -> Check:
    """Return the check of a recipe, alternating with the peer. Each ends with numbers on the CPU, so nothing is pending."""

    def check(device: str, folder: Path) -> Iterator[Row]:
        where, size, rounds, calls = choose_device(device), case, ROUNDS, CALLS
        if on_cpu(device):
            size, rounds, calls = case._replace(batch=8), 2, 1
        pairs = {"step": (our_step(size, where), peer_step(size, where)), "answers": answering(size, where)}
        for what, pair in pairs.items():
            head = f"{size.recipe}, {size.batch} images, {what}"
            work = {name: timed(way, calls) for name, way in zip(("ours", "plain"), pair, strict=True)}
            times = in_turn(work, rounds, warm_up=2)
            rates = [f"{size.batch / statistics.median(seconds):,.0f}" for seconds in times.values()]
            yield Row(f"{head}: ours, plain, images/s", ", ".join(rates))
            yield Row(f"{head}: ours is so many times as fast", spread(ratios(times["plain"], times["ours"])))

    check.__name__ = case.recipe
    return check


CHECKS = tuple(measured(case) for case in CASES)
