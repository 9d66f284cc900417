"""How long 90 epochs of ImageNet take on 1 to 4,096 GPUs: a model of input, step and network time, and a check of it on CPUs.

    python -m benchmarks.simulate           the table for GPUs, from `MACHINES`
    python -m benchmarks.simulate --check   measure training on 1 to 8 processes here, and compare with the model

A step of `paper` on N images takes as long as the slowest of three: its input (decoding, divided over the cores), the network's
own work (computing, and the part of the exchange that it does not hide), and the disk or the object store. The constants of
GPUs are of data sheets and of what such networks reach elsewhere; none was measured, as no GPU was at hand.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

IMAGES, EPOCHS = 1_281_167, 90
FLOP = 4.3e9  # of an image, forward and backward (docs/scale.md)
WEIGHTS = 61e6  # of `paper`; gradients are sent in float32
MESSAGES, LATENCY = 16, 20e-6  # gradients are reduced one by one; seconds that a message takes at least, an estimate
HIDDEN = 0.7  # of the exchange goes on behind the backward pass: gradients of dense layers, nearly all, are ready first


class Machine(NamedTuple):
    """A machine: FLOP/s that a GPU sustains, GPUs and cores of a machine, bytes/s of its links and of what it reads from."""

    name: str
    flops: float
    gpus: int
    cores: int
    between_gpus: float
    between_machines: float
    reading: float
    price: float  # dollars an hour for a GPU


# H100: a quarter of 989 TFLOP/s in bfloat16; NVLink 450 GB/s each way, 400 Gbit/s of network, 26 cores a GPU in the cloud
MACHINES = (
    Machine("H100", 250e12, 8, 208, 450e9, 50e9, 10e9, 2.5),
    Machine("A100", 90e12, 8, 96, 300e9, 25e9, 5e9, 1.5),
)
DECODED = 782.0  # images/s that a core decodes from JPEG to 227 pixels (python -m benchmarks.decode)
CACHED = 42_300.0  # that a core takes from the cache
JPEG, RAW = 40e3, 3 * 256.0**2  # bytes of an image


def seconds(machine: Machine, gpus: int, batch: int, cached: bool) -> dict[str, float]:
    """Return the seconds of each part of a step with `batch` images on each GPU."""
    machines, on_each = -(-gpus // machine.gpus), min(gpus, machine.gpus)
    sent = 2 * (gpus - 1) / gpus * 4 * WEIGHTS
    wire = machine.between_machines if machines > 1 else machine.between_gpus
    own = on_each * batch  # images of a machine
    return {
        "computing": batch * FLOP / machine.flops,
        "exchange": (1 - HIDDEN) * (sent / wire + 2 * math.ceil(math.log2(gpus)) * MESSAGES * LATENCY),
        "decoding": own / ((CACHED if cached else DECODED) * machine.cores * on_each / machine.gpus),
        "reading": own * (RAW if cached else JPEG) / machine.reading,
    }


def step_seconds(parts: dict[str, float]) -> float:
    """Return the seconds of a step from those of its parts."""
    return max(parts["computing"] + parts["exchange"], parts["decoding"], parts["reading"])


def table(machine: Machine, batch: int) -> list[dict[str, object]]:
    """Return a row for each number of GPUs, images decoded in each epoch or kept."""
    rows: list[dict[str, object]] = []
    for gpus in (1, 4, 8, 64, 512, 4096):
        for cached in (False, True):
            parts = seconds(machine, gpus, batch, cached)
            hours = EPOCHS * IMAGES / (gpus * batch) * step_seconds(parts) / 3600
            slowest = max(("decoding", "reading"), key=lambda key: parts[key])
            limit = slowest if parts[slowest] > parts["computing"] + parts["exchange"] else "network"
            rows.append(
                {"gpus": gpus, "cached": cached, "minutes": 60 * hours, "dollars": hours * gpus * machine.price, "limit": limit}
            )
    return rows


def measure(processes: int, batch: int, steps: int) -> float:
    """Return the seconds of a training step of `batch` images in all, on this many processes of one thread."""
    code = (
        "import time, torch, alexnet, sys\n"
        "from alexnet.training.distributed import process_group\n"
        "from alexnet.training.parallel import ParallelModel\n"
        "torch.set_num_threads(1)\n"
        f"batch, steps = {batch}, {steps}\n"
        "with process_group() as group:\n"
        "    network = alexnet.AlexNet('paper', 1000, width=0.25)\n"
        "    model = ParallelModel(network, group, 'data', synchronised=True)\n"
        "    model.batch_size = batch\n"
        "    optimizer = torch.optim.SGD(model.network.parameters(), lr=0.001)\n"
        "    images = torch.zeros(batch // group.world_size, 3, 227, 227)\n"
        "    taken = []\n"
        "    for step in range(steps + 2):\n"
        "        group.sum(0)\n"
        "        began = time.monotonic()\n"
        "        optimizer.zero_grad()\n"
        "        model.forward(images).float().logsumexp(1).mean().backward()\n"
        "        optimizer.step()\n"
        "        taken.append(time.monotonic() - began)\n"
        "    if group.is_main: print(sorted(taken[2:])[len(taken[2:]) // 2])\n"
    )
    running = []
    for rank in range(processes):
        place = {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "OMP_NUM_THREADS": "1"}
        environment = environment if processes > 1 else {**os.environ, "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in running]
    return float(outputs[0].strip().splitlines()[-1])


def check(batch: int = 64, steps: int = 7, rounds: int = 3) -> None:
    """Fit the time of an image and of an exchange on 1 and 2 processes, and predict 4 and 8."""
    cores = os.cpu_count() or 1
    found = {processes: [measure(processes, batch, steps) for _ in range(rounds)] for processes in (1, 2, 4, 8)}
    medians = {processes: statistics.median(taken) for processes, taken in found.items()}
    computing = medians[1]
    exchange = max(
        0.0, medians[2] - computing / min(2, cores)
    )  # with 2 processes, a process sends 2 (P-1)/P = 1 times the weights
    for processes, taken in found.items():
        # Processes share the cores, and the memory that they exchange through.
        predicted = computing / min(processes, cores) + exchange * 2 * (processes - 1) / processes * max(1, processes / cores)
        off = predicted / medians[processes] - 1
        spread = f"{min(taken):.2f} to {max(taken):.2f}"
        print(
            f"{processes} processes: {medians[processes]:.2f} s a step ({spread}), {predicted:.2f} s by the model ({off:+.0%})"
        )
    print(json.dumps({"benchmark": "simulate", "measured": medians, "computing": computing, "exchange": exchange}))


def main() -> None:
    """Print the tables, or check the model here."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--batch", type=int, default=128, help="images on each GPU")
    options = parser.parse_args()
    if options.check:
        check()
        return
    began = time.perf_counter()
    for machine in MACHINES:
        print(f"{machine.name}, {options.batch} images on each GPU\n")
        print("| GPUs | images | minutes | dollars | limited by |\n|---|---|---|---|---|")
        for row in table(machine, options.batch):
            kept = "kept, raw" if row["cached"] else "decoded"
            print(f"| {row['gpus']:,} | {kept} | {row['minutes']:,.1f} | {row['dollars']:,.0f} | {row['limit']} |")
        print()
    print(json.dumps({"benchmark": "simulate", "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
