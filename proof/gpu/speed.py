"""Images a second: a training step and answers, in turn with the same network in PyTorch as one would write it for a GPU.

The peer has channels last, autocast, PyTorch's own norms and its fused SGD; ours is what `alexnet train` does, deterministic
algorithms among it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.step import Case, batch_of, ours, plain_step
from benchmarks.turns import local_main_first, ratios, spread, timed
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
    return to_device(layers, device)  # the layers alone, without our fast forms


def peer_step(case: Case, device: torch.device) -> Work:
    """Return a training step of the peer."""
    recipe, layers = load(case.recipe), peer_network(case, device)
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.01, momentum=recipe.optimizer.momentum, fused=True)
    images, targets = batch_of(case, device)
    large = interpolate(images, scale_factor=float(case.upscale)).contiguous(memory_format=torch.channels_last)
    return plain_step(layers, optimizer, large, targets, recipe.train.precision)


def our_step(case: Case, device: torch.device) -> Work:
    """Return a training step of ours, as `alexnet train` takes it."""
    step = ours(case, device)

    def exact() -> object:
        with reproducible(device):
            return step()

    return exact


def answering(case: Case, device: torch.device) -> tuple[Work, Work]:
    """Return ours and the peer's way from uint8 images in the computer's memory to logits there."""
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


def rows(what: str, case: Case, ways: dict[str, Work], rounds: int, calls: int) -> Iterator[Row]:
    """Take the ways in turn; tell images a second and the ratio. Each ends with numbers on the CPU, so all is done."""
    times = local_main_first({way: timed(work, calls) for way, work in ways.items()}, rounds, warm_up=2)
    rates = {way: case.batch / statistics.median(seconds) for way, seconds in times.items()}
    yield Row(f"{what}: ours, plain, images/s", f"{rates['ours']:,.0f}, {rates['plain']:,.0f}")
    yield Row(f"{what}: ours is so many times as fast", spread(ratios(times["plain"], times["ours"])))


def measured(case: Case) -> Check:
    """Return the check of a recipe."""

    def check(device: str, folder: Path) -> Iterator[Row]:
        where = choose_device(device)
        rounds, calls = ROUNDS, CALLS
        size = case
        if on_cpu(device):
            size, rounds, calls = case._replace(batch=8), 2, 1
        what = f"{size.recipe}, {size.batch} images"
        yield from rows(f"{what}, step", size, {"ours": our_step(size, where), "plain": peer_step(size, where)}, rounds, calls)
        our_way, peer_way = answering(size, where)
        yield from rows(f"{what}, answers", size, {"ours": our_way, "plain": peer_way}, rounds, calls)

    check.__name__ = case.recipe
    return check


CHECKS = tuple(measured(case) for case in CASES)
