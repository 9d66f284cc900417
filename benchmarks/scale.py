"""Data, hybrid and tower parallel: bytes sent and time of a step, for the 2012 network on two processes.

    python -m benchmarks.scale [--variant paper] [--images 256] [--rates 0,1000]

Each process has its own network namespace; the only connection between them is a virtual cable. The kernel counts the bytes on
it and limits its rate (in Mbit/s, 0: unlimited). This requires Linux, `ip`, `tc` and root; otherwise nothing is measured. Both
processes run on one machine, with one thread each. `--images` is the size of the whole batch: half for each process, except
with towers, where both see all of it. The predicted bytes are computed from shapes (docs/scale.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from benchmarks.turns import skip

import alexnet
from alexnet.data.batches import Batch
from alexnet.network.device import autocast, keep_freed_memory, resolve_precision, to_device
from alexnet.recipe import Train, load
from alexnet.training.distributed import ProcessGroup, process_group
from alexnet.training.optimizer import Loss, build_optimizer
from alexnet.training.parallel import AllGather, Parallel, ParallelModel

KINDS: tuple[Parallel, ...] = ("data", "hybrid", "towers")
STEPS, PROCESSES, CLASSES, SIDE = 5, 2, 1000, 227
CPU = torch.device("cpu")


def formula(model: ParallelModel, group: ProcessGroup, images: int, bytes_each: int) -> float:
    """Return the bytes that a process sends in a step: float32 gradients, activations of `bytes_each` bytes, and logits.

    An all-reduce sends the data twice, except for the process's own part. An exchange sends the process's part to all others in
    the forward pass, and the gradients of their parts to them in the backward pass.
    """
    others = (group.world_size - 1) / group.world_size
    if model.mode == "data":
        return 2 * others * 4 * sum(p.numel() for p in model.network.parameters())
    undivided = [p for name, p in model.network.named_parameters() if name not in model.shard_dims and name != "head.bias"]
    gradients = 2 * others * 4 * sum(p.numel() for p in undivided) if model.mode == "hybrid" else 0.0
    exchanged, kept = 0, [name for name, layer in model.full_model.layers.items() if isinstance(layer, torch.nn.Module)]
    with torch.no_grad():
        _, outputs = model.full_model.eval().activations(torch.zeros(1, 3, SIDE, SIDE), kept)
    before = ""
    for name, layer in model.network.layers.items():
        if isinstance(layer, AllGather):
            exchanged += outputs[before].numel()
        else:
            before = name
    activations = 2 * others * bytes_each * exchanged * images
    return gradients + activations + 2 * others * 4 * images * CLASSES


def work(kind: Parallel, variant: str, images: int, wire: str) -> None:
    """Take steps, and print the measurements of the main process: seconds per step, and bytes sent by both in one step."""
    keep_freed_memory()
    recipe = load("paper")
    precision = resolve_precision(CPU, recipe.train.precision)
    with process_group() as group:
        torch.manual_seed(0)
        network = to_device(alexnet.AlexNet(variant, CLASSES), CPU)
        model = ParallelModel(network, group, kind, synchronised=True)
        expected = formula(model, group, images, 2 if precision == "bfloat16" else 4)
        optimizer = build_optimizer(model.network, recipe.optimizer)
        [(start, end)] = model.local_bounds([(0, images)])
        model.batch_size = images
        batch = Batch(torch.randn(end - start, 3, SIDE, SIDE), torch.randint(0, CLASSES, (end - start,)))
        loss_of = Loss(Train(), batch.targets.numpy(), CLASSES, CPU)
        model.network.train()
        seconds, sent = [], []
        for _ in range(STEPS + 1):
            group.sum(0)  # begin together
            before, began = bytes_sent(wire), time.monotonic()
            optimizer.zero_grad()
            targets = model.targets(batch)
            with autocast(CPU, precision):
                logits = model.forward(batch.images).float()
            torch.autograd.backward(loss_of(logits, targets) * (len(targets) / images))
            optimizer.step()
            seconds.append(time.monotonic() - began)
            sent.append(bytes_sent(wire) - before)
        [both] = group.sum(statistics.median(sent[1:]))
        if group.is_main:
            print(
                json.dumps(
                    {"seconds": seconds[1:], "sent": both, "formula": expected * group.world_size, "precision": precision}
                )
            )


def bytes_sent(wire: str) -> int:
    """Return how many bytes a network device of this namespace has sent."""
    return int(Path(f"/sys/class/net/{wire}/statistics/tx_bytes").read_text())


@contextmanager
def cable() -> Iterator[list[str]]:
    """Create a namespace for each process, with a cable between them; yield their names, which the devices share."""
    names = [f"alexnet{rank}" for rank in range(PROCESSES)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for rank, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{rank + 1}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def limit(names: list[str], rate: int) -> None:
    """Limit the cable to `rate` Mbit/s in each direction; 0: unlimited."""
    for name in names:
        tc = ["ip", "netns", "exec", name, "tc", "qdisc"]
        subprocess.run([*tc, "del", "dev", name, "root"], capture_output=True, check=False)
        if rate:
            how = ["tbf", "rate", f"{rate}mbit", "burst", "512kb", "latency", "100ms"]
            subprocess.run([*tc, "add", "dev", name, "root", *how], check=True)


def measure(names: list[str], kind: str, options: argparse.Namespace) -> dict[str, object]:
    """Run a process in each namespace and return the output of the first."""
    running = []
    for rank, name in enumerate(names):
        torchrun = {"RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "LOCAL_RANK": "0"}
        where = {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29400", "GLOO_SOCKET_IFNAME": name, "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "benchmarks.scale",
            "--work",
            kind,
            "--variant",
            options.variant,
            "--images",
            str(options.images),
        ]
        command = ["ip", "netns", "exec", name, *command, "--wire", name]
        environment = {**os.environ, **torchrun, **where}
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    finished = [process.communicate() for process in running]
    output = finished[0][0].strip()
    # Exit codes do not count: without a resolver in the namespace, PyTorch may abort at the very end.
    if not output:
        raise SystemExit("\n".join(error for _, error in finished))
    found: dict[str, object] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    """Measure each kind at each rate, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description="Bytes and time of parallel steps; see the file's head.")
    parser.add_argument("--variant", default="paper")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rates", default="0,1000")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--work", choices=KINDS)
    parser.add_argument("--wire", default="")
    options = parser.parse_args()
    if options.work:
        work(options.work, options.variant, options.images, options.wire)
        return
    if not (shutil.which("ip") and shutil.which("tc")) or not hasattr(os, "geteuid") or os.geteuid():
        skip("a cable of a limited rate needs Linux, ip, tc and root's privileges")
    rows: list[dict[str, object]] = []
    with cable() as names:
        for rate in map(int, options.rates.split(",")):
            limit(names, rate)
            for kind in options.kinds.split(","):
                rows.append({"kind": kind, "rate": rate, **measure(names, kind, options)})
                show(rows[-1])
    print(json.dumps({"benchmark": "scale", "variant": options.variant, "images": options.images, "rows": rows}))


def show(row: dict[str, object]) -> None:
    """Print a row."""
    seconds = row["seconds"]
    assert isinstance(seconds, list)
    rate = f"{row['rate']} Mbit/s" if row["rate"] else "unlimited"
    print(
        f"{row['kind']:8} {rate:12} {statistics.median(seconds):6.2f} s a step ({min(seconds):.2f} to {max(seconds):.2f})   "
        f"{float(str(row['sent'])) / 1e6:7.1f} MB sent by both, {float(str(row['formula'])) / 1e6:7.1f} by the formula"
    )


if __name__ == "__main__":
    main()
