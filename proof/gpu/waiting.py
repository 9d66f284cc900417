"""The share of a training's time in which the device waits: for images, or for Python to tell it what to do.

On a CPU, the time between PyTorch's operations.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from proof.gpu import Row
from proof.gpu.cifar import dataset
from proof.gpu.training import on_cpu
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from alexnet import recipe
from alexnet.errors import Interrupted
from alexnet.training import train as training
from alexnet.training.trainer import Trainer

FIRST, LAST = 10, 40  # the steps to watch
SMALL = {"model.width": 1 / 16, "images.input": 67}  # on a CPU


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals, as kernels of several streams overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def share_waiting(device: str, out: Path, **changes: Any) -> float:
    """Train by `fast`, and return the share of the watched steps' time in which the device did nothing."""
    kind, activity = DeviceType.CUDA, ProfilerActivity.CUDA
    if on_cpu(device):
        kind, activity = DeviceType.CPU, ProfilerActivity.CPU
    profiler, original, count, began, seconds = profile(activities=[activity]), Trainer.train_step, 0, 0.0, 0.0

    def watched(self: Trainer, *arguments: Any) -> None:
        nonlocal count, began, seconds
        if count == FIRST:
            self.session.read_steps()  # waits for the device
            profiler.start()
            began = time.perf_counter()
        original(self, *arguments)
        count += 1
        if count == LAST:
            self.session.read_steps()
            seconds = time.perf_counter() - began
            profiler.stop()
            signal.raise_signal(signal.SIGINT)

    Trainer.train_step = watched  # type: ignore[method-assign]
    settings = {"data.dataset": dataset(device), "train.epochs": 9, **(SMALL if on_cpu(device) else {}), **changes}
    try:
        training.start(recipe.load("fast").with_settings(settings), out, device, time.monotonic())
    except Interrupted:
        pass
    finally:
        Trainer.train_step = original  # type: ignore[method-assign]
    spans = [(e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type == kind]  # microseconds
    return 1 - covered(spans) / 1e6 / seconds


def waiting(device: str, folder: Path) -> Iterator[Row]:
    """Measure `fast`, as it is and with twice the batch."""
    for batch in (128, 256):
        share = share_waiting(device, folder / str(batch), **{"train.batch_size": batch})
        yield Row(f"fast, {batch} images a step: share of the time in which the device waits", f"{share:.1%}")


CHECKS = (waiting,)
