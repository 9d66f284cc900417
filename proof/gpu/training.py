"""A training on the device has the same losses, step by step, as on the CPU.

Other steps use the synthetic images and the settings of this file too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from proof.gpu import Check, Row, at_most
from proof.pictures import class_folders
from torch import Tensor

from alexnet import recipe
from alexnet.training import train as training
from alexnet.training.step import Step

CLOSE, ROUGH = 2e-3, 2e-1  # tolerances of the loss: in float32 (no TF32), and in 16 bits against the CPU's float32
LABELS = ("across", "down", "disc")
# Without dropout, as each device draws different random numbers; at low rates, so that rounding errors stay small.
PLAIN = {
    **{"model.width": 1 / 16, "model.dropout": 0.0, "train.batch_size": 16, "train.epochs": 2},
    **{"train.precision": "float32", "data.workers": 1},
}
CASES: dict[str, Mapping[str, Any]] = {
    "fast": {"images.input": 99, "optimizer.lr": 0.002, "optimizer.muon_lr": 0.02},
    "cifar10": {"images.input": 99, "optimizer.lr": 0.001},
    "paper": {"images.cache_size": 128, "images.crop": 115, "images.input": 115},
    "code2012": {"images.cache_size": 128, "images.crop": 115, "images.input": 115},
}


def pictures(folder: Path, count: int = 20) -> Path:
    """Return a folder of three classes, created if it does not exist yet."""
    place = folder / "pictures"
    return place if place.exists() else class_folders(place, count, LABELS)


def train(name: str, out: Path, device: str, **changes: Any) -> list[float]:
    """Train by the recipe `name` into `out`; return the loss of each step."""
    chosen = recipe.load(name).with_settings({"data.dataset": str(pictures(out.parent)), **PLAIN, **CASES[name], **changes})
    with losses() as found:
        training.start(chosen, out, device, time.monotonic())
    return found


@contextmanager
def losses() -> Iterator[list[float]]:
    """Record the loss of each training step while the context lasts."""
    found: list[float] = []
    original = Step.forward_backward

    def noted(self: Step, *arguments: Any) -> tuple[Tensor, Tensor]:
        loss, hits = original(self, *arguments)
        found.append(loss.item())
        return loss, hits

    Step.forward_backward = noted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Step.forward_backward = original  # type: ignore[method-assign]


def furthest(found: list[float], wanted: list[float]) -> float:
    """Return the largest difference of losses, relative to the loss; infinite if one is missing."""
    if len(found) != len(wanted) or not found:
        return float("inf")
    return max(abs(a - b) / max(1e-3, abs(b)) for a, b in zip(found, wanted, strict=True))


def on_cpu(device: str) -> bool:
    """Return whether there is no device but the CPU."""
    return torch.device(device).type == "cpu"


def case(name: str) -> Check:
    """Return the check of a recipe."""

    def check(device: str, folder: Path) -> Iterator[Row]:
        wanted = train(name, folder / "cpu", "cpu")
        found = train(name, folder / "device", device)
        yield at_most(f"{name}: losses of {len(wanted)} steps, float32, off by", furthest(found, wanted), CLOSE)
        for precision, count in (("bfloat16", len(wanted)), ("float16", 2)):  # later steps drift apart
            rough = train(name, folder / precision, device, **{"train.precision": precision})
            yield at_most(f"{name}: {count} of them in {precision}, off by", furthest(rough[:count], wanted[:count]), ROUGH)

    check.__name__ = name
    return check


CHECKS = tuple(case(name) for name in CASES)
