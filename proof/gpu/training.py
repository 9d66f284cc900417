"""A training on the device has the losses, step by step, that it has on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from proof.gpu import Check, Row, at_most
from proof.gpu.trainings import CASES, furthest, train

CLOSE, ROUGH = 2e-3, 2e-1  # of the loss: in float32 (no TF32), and in bfloat16 against the CPU's float32


def case(name: str) -> Check:
    """Return the check of a recipe."""

    def check(device: str, folder: Path) -> Iterator[Row]:
        wanted = train(name, folder / "cpu", "cpu")
        found = train(name, folder / "device", device)
        yield at_most(f"{name}: losses of {len(wanted)} steps, float32, off by", furthest(found, wanted), CLOSE)
        rough = train(name, folder / "bfloat16", device, **{"train.precision": "bfloat16"})
        yield at_most(f"{name}: the same in bfloat16", furthest(rough, wanted), ROUGH)

    check.__name__ = name
    return check


CHECKS = tuple(case(name) for name in CASES)
