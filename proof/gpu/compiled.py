"""A compiled training (`train.compile`) has the losses of the plain one on the device, and resumes to the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from proof.gpu import Row, at_most
from proof.gpu.resume import stopped
from proof.gpu.training import CLOSE, furthest, on_cpu, train


def losses(device: str, folder: Path) -> Iterator[Row]:
    """Compare in float32; then stop after two steps of the default precision, and resume."""
    plain = train("cifar10", folder / "plain", device)
    found = train("cifar10", folder / "compiled", device, **{"train.compile": True})
    yield at_most(f"cifar10, compiled: losses of {len(plain)} steps, float32, off by", furthest(found, plain), CLOSE)
    changes = {"train.compile": True, "model.dropout": 0.5, "train.precision": "float32" if on_cpu(device) else "auto"}
    train("cifar10", folder / "whole", device, **changes)
    stopped("cifar10", folder / "stopped", device, 2, **changes)
    same = (folder / "whole" / "model.safetensors").read_bytes() == (folder / "stopped" / "model.safetensors").read_bytes()
    yield Row("cifar10, compiled: stopped after 2 steps, resumed", "same bytes" if same else "other bytes", "same bytes", same)


CHECKS = (losses,)
