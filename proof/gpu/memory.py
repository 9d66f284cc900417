"""Too little memory: batches are split, results stay the same."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from proof.gpu import Row, at_most
from proof.gpu.training import furthest, on_cpu, pictures, train

import alexnet
from alexnet.inference.forward import predict_logits
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import choose_device

IMAGES = 512  # of a forward pass


@contextmanager
def room_for(share: float, most: int, device: str, peak: int) -> Iterator[None]:
    """Limit the device's memory to a `share` of the `peak` bytes used; on a CPU, fail on more than `most` images instead."""
    where = choose_device(device)
    if on_cpu(device):
        original = AlexNet.forward

        def limited(self: AlexNet, images: torch.Tensor, upscale: int = 1) -> torch.Tensor:
            if len(images) > most:
                raise torch.OutOfMemoryError("acted: out of memory")
            return original(self, images, upscale)

        AlexNet.forward = limited  # type: ignore[method-assign]
        try:
            yield
        finally:
            AlexNet.forward = original  # type: ignore[method-assign]
        return
    backend = getattr(torch, where.type)
    gc.collect()
    torch.accelerator.memory.empty_cache()
    total = backend.mem_get_info(where)[1]
    backend.set_per_process_memory_fraction(min(1.0, share * peak / total), where)
    try:
        yield
    finally:
        backend.set_per_process_memory_fraction(1.0, where)


def peak_of(device: str) -> int:
    """Return the most bytes that this process has reserved on the device since the last call."""
    if on_cpu(device):
        return 0
    where = choose_device(device)
    found = torch.accelerator.memory.max_memory_reserved(where)
    gc.collect()
    torch.accelerator.memory.empty_cache()
    torch.accelerator.memory.reset_peak_memory_stats(where)
    return int(found)


def training(device: str, folder: Path) -> Iterator[Row]:
    """A batch that does not fit is split, and the losses equal those of the whole batch. No norm here depends on the batch."""
    width = 1 / 16 if on_cpu(device) else 1 / 4
    size: dict[str, Any] = {"model.width": width, "train.batch_size": 48, "train.epochs": 2}
    if not on_cpu(device):
        pictures(folder, 400)
        size |= {"images.cache_size": 256, "images.crop": 227, "images.input": 227, "train.batch_size": 512}
    peak_of(device)
    wanted = train("paper", folder / "whole", device, **size)
    peak = peak_of(device)
    with room_for(0.6, 24, device, peak):
        found = train("paper", folder / "cut", device, **size)
    said = (folder / "cut" / "log.txt").read_text(encoding="utf-8").count("memory is too small")
    yield Row("the log tells of cut batches", f"{said} times", "once or more", said > 0)
    yield at_most(f"losses of {len(wanted)} steps, cut, off by", furthest(found, wanted), 2e-3)


def answers(device: str, folder: Path) -> Iterator[Row]:
    """Images that do not fit together are processed in halves."""
    width, count = (1 / 16, 64) if on_cpu(device) else (1 / 4, IMAGES)
    train("cifar10", folder / "run", device)
    run = alexnet.load(folder / "run", device)
    preprocessing = run.config.preprocessing.model_copy(update={"input": 227, "upscale": 1})
    torch.manual_seed(0)
    network = AlexNet("cifar10", 3, width=width).to(choose_device(device)).eval()
    images = torch.randint(0, 256, (count, preprocessing.side, preprocessing.side, 3), dtype=torch.uint8)
    peak_of(device)
    wanted = predict_logits(network, images, preprocessing, "float32")
    with room_for(0.6, 24, device, peak_of(device)):
        found = predict_logits(network, images, preprocessing, "float32")
    yield at_most("logits in halves, off by", float(np.abs(found - wanted).max()), 1e-3)


CHECKS = (training, answers)
