"""Images per second: training and inference, alternating with the same network in plain PyTorch, tuned for a GPU.

The peer uses channels last, autocast, PyTorch's own norms, its fused SGD and cuDNN's fastest algorithms, plain and compiled;
ours is what `alexnet train` does, with deterministic algorithms, and without them to see what they cost.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.step import Case, batch_of, ours, plain_step
from benchmarks.turns import in_turn, ratios, spread, timed
from proof.gpu import Check, Row
from proof.gpu.training import on_cpu
from torch import nn
from torch.nn.functional import interpolate

from alexnet.data.preprocessing import to_input
from alexnet.errors import AlexNetError
from alexnet.inference.forward import predict_logits
from alexnet.network.device import autocast, choose_device, reproducible, to_device
from alexnet.network.layers import BatchNorm, Dropout
from alexnet.network.lrn import LocalResponseNorm
from alexnet.recipe import Preprocessing, load

NETWORKS = (Case("fast", 0, 32, 4), Case("cifar10", 0, 227), Case("paper", 0, 227), Case("paper", 0, 227, variant="owt"))
CASES = tuple(network._replace(batch=batch) for batch in (128, 512, 32) for network in NETWORKS)
ROUNDS, CALLS = 7, 10
SECONDS = 130.0  # in which to begin with a case
BEGAN = time.monotonic()
Work = Callable[[], object]


def peer_network(case: Case, device: torch.device) -> nn.Sequential:
    """Return a case's network with PyTorch's own layers in place of ours."""
    network = case.network()
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


def peer_step(case: Case, device: torch.device, *, compiled: bool) -> Work:
    """Return a training step of the peer, with the fastest algorithms that cuDNN finds."""
    recipe, layers = load(case.recipe), peer_network(case, device)
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.01, momentum=recipe.optimizer.momentum, fused=True)
    images, targets = batch_of(case, device)
    large = interpolate(images, scale_factor=float(case.upscale)).contiguous(memory_format=torch.channels_last)
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    forward = torch.compile(layers, mode=mode, dynamic=False) if compiled else layers
    step = plain_step(forward, optimizer, large, targets, recipe.train.precision)  # type: ignore[arg-type]

    def tuned() -> object:
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True  # type: ignore[attr-defined]
        try:
            return step()
        finally:
            torch.backends.cudnn.benchmark = before  # type: ignore[attr-defined]

    return tuned


def ways(case: Case, device: torch.device) -> dict[str, Callable[[], Work]]:
    """Return what makes each training step: ours as in `alexnet train`, without determinism, and compiled; the peer's."""
    result: dict[str, Callable[[], Work]] = {
        "ours": lambda: reproducible(device)(ours(case, device)),
        "not deterministic": lambda: ours(case, device),
        "plain": lambda: peer_step(case, device, compiled=False),
    }
    if device.type != "cpu" or case.recipe == "fast":  # compiling takes a minute
        result |= {
            "ours, compiled": lambda: reproducible(device)(ours(case, device, compiled=True)),
            "plain, compiled": lambda: peer_step(case, device, compiled=True),
        }
    return result


def memory_of(work: Work, device: torch.device) -> int:
    """Return the bytes that `work` takes at most, besides what is there before."""
    if device.type != "cuda":
        work()
        return 0
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def answering(case: Case, device: torch.device) -> tuple[Work, Work]:
    """Return our inference and the peer's, from uint8 images in main memory to logits there."""
    recipe = load(case.recipe)
    side, plain = case.side, {"fit": "crop", "reduced_decode": False, "resize": "bilinear"}
    preprocessing = Preprocessing(cache_size=side, input=side * case.upscale, upscale=case.upscale, **plain)  # type: ignore[arg-type]
    network = to_device(case.network(), device).eval()
    layers = peer_network(case, device).eval()
    images = torch.randint(0, 256, (case.batch, side, side, 3), dtype=torch.uint8)

    def peer() -> object:
        with torch.inference_mode(), autocast(device, recipe.train.precision):
            x = interpolate(to_input(images.to(device), preprocessing), scale_factor=float(case.upscale))
            return layers(x).float().cpu()

    return lambda: predict_logits(network, images, preprocessing, recipe.train.precision), peer


def compared(head: str, batch: int, work: dict[str, Work], rounds: int) -> Iterator[Row]:
    """Measure in turn, and compare with the first. Each ends with numbers on the CPU, so nothing is pending."""
    first, slowest = next(iter(work)), max(timed(each)() for each in work.values())
    calls = max(1, min(CALLS, int(0.2 / slowest)))
    times = in_turn({name: timed(each, calls) for name, each in work.items()}, rounds)
    for name, seconds in times.items():
        yield Row(f"{head}: {name}, images/s", f"{batch / statistics.median(seconds):,.0f}")
    for name in [name for name in times if name != first]:
        yield Row(f"{head}: {first} is so many times as fast as {name}", spread(ratios(times[name], times[first])))


def measured(case: Case) -> Check:
    """Return the check of a case: training steps, and with 128 images predictions."""
    name = case.variant or case.recipe

    def check(device: str, folder: Path) -> Iterator[Row]:
        where, size, rounds = choose_device(device), case, ROUNDS
        if on_cpu(device):
            size, rounds = case._replace(batch=4, width=1 / 16), 2
        head = f"{name}, {size.batch} images"
        if time.monotonic() - BEGAN > SECONDS or (on_cpu(device) and case.batch != CASES[0].batch):
            yield Row(head, "not measured" if on_cpu(device) else "no time was left")
            return
        work = {}
        for way, make in ways(size, where).items():
            try:
                work[way] = make()
                work[way]()
                taken = memory_of(work[way], where)
            except (RuntimeError, AlexNetError) as error:
                work.pop(way, None)
                yield Row(f"{head}: {way}", f"{type(error).__name__}: {str(error)[:200]}", "no error", False)
                continue
            if taken:
                yield Row(f"{head}: {way}, peak memory of a step, MB", f"{taken / 1e6:,.0f}")
        yield from compared(f"{head}, step", size.batch, work, rounds)
        if case.batch == CASES[0].batch:
            yield from compared(
                f"{head}, answers", size.batch, dict(zip(("ours", "plain"), answering(size, where), strict=True)), rounds
            )

    check.__name__ = f"{name}_{case.batch}"
    return check


CHECKS = tuple(measured(case) for case in CASES)
