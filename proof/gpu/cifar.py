"""CIFAR-10 by `--minutes 1`, as a user types it: its accuracy, the time to 90 % of the validation images, and the peak memory.

Without CIFAR-10 in ALEXNET_DATA and without a network, or on a CPU, digits take its place.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from proof.gpu import Row
from proof.gpu.digits import command
from proof.gpu.training import on_cpu

from alexnet.data.sources import open_table
from alexnet.errors import AlexNetError

GOAL = 0.9


def dataset(device: str) -> str:
    """Return `cifar10` if it is there or can be downloaded, else `digits`."""
    if on_cpu(device):
        return "digits"
    try:
        open_table("cifar10")
    except AlexNetError as error:
        print(f"digits instead of cifar10: {error}")
        return "digits"
    return "cifar10"


def minute(device: str, folder: Path) -> Iterator[Row]:
    """Train for a minute; on a CPU for 15 seconds."""
    data, minutes = dataset(device), 0.25 if on_cpu(device) else 1
    run = folder / "run"
    found = command("train", data, "--minutes", minutes, "--out", run, "--device", device)
    head = f"{data}, --minutes {minutes:g}"
    low, high = found["test"]["top1_interval"]
    yield Row(f"{head}: top-1 of the test set", f"{found['test']['top1']:.1%} ({low:.1%} to {high:.1%})")
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    reached = [float(row["seconds"]) for row in rows if float(row["val_top1"]) >= GOAL]
    yield Row(f"{head}: seconds to {GOAL:.0%} of the validation images", f"{reached[0]:.0f}" if reached else "not reached")
    rates = [float(row["images_per_second"]) for row in rows]
    yield Row(f"{head}: images/s, fastest epoch of {len(rows)}", f"{max(rates):,.0f}")
    yield Row(f"{head}: peak memory, GB", rows[-1]["memory_gb"])


CHECKS = (minute,)
