"""A training stopped within an epoch and resumed ends bit-identical to an uninterrupted one on the same device."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proof.gpu import Check, Row
from proof.gpu.training import on_cpu, train

from alexnet.errors import Interrupted
from alexnet.training import train as training
from alexnet.training.trainer import Trainer

STOPS = (2, 4)  # number of steps before Ctrl-C; an epoch has three


def stopped(name: str, out: Path, device: str, steps: int, **changes: Any) -> None:
    """Train, send Ctrl-C after `steps` steps, then resume to the end."""
    original, count = Trainer.train_step, 0

    def counted(self: Trainer, *arguments: Any) -> None:
        nonlocal count
        original(self, *arguments)
        count += 1
        if count == steps:
            signal.raise_signal(signal.SIGINT)

    Trainer.train_step = counted  # type: ignore[method-assign]
    try:
        train(name, out, device, **changes)
    except Interrupted:
        pass
    finally:
        Trainer.train_step = original  # type: ignore[method-assign]
    training.resume(out, device, time.monotonic())


def case(name: str, precision: str) -> Check:
    """Return the check of a recipe."""

    def check(device: str, folder: Path) -> Iterator[Row]:
        changes = {"train.precision": precision, "model.width": 1 / 16 if on_cpu(device) else 1.0}
        changes |= {"model.dropout": 0.5}  # its random draws must be repeated too
        train(name, folder / "whole", device, **changes)
        wanted = (folder / "whole" / "model.safetensors").read_bytes()
        train(name, folder / "again", device, **changes)
        same = (folder / "again" / "model.safetensors").read_bytes() == wanted
        yield Row(f"{name}, {precision}: trained once more", "same bytes" if same else "other bytes", "same bytes", same)
        for steps in STOPS:
            out = folder / f"stopped-{steps}"
            stopped(name, out, device, steps, **changes)
            same = (out / "model.safetensors").read_bytes() == wanted
            what = f"{name}, {precision}: stopped after {steps} steps, resumed"
            yield Row(what, "same bytes" if same else "other bytes", "same bytes", same)

    check.__name__ = f"{name}_{precision}"
    return check


CHECKS = (case("fast", "auto"), case("paper", "auto"), case("cifar10", "float32"), case("fast", "float16"))
