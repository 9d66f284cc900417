"""Kill a random worker of trainings under torchrun, at random moments: each must end with the weights of an undisturbed one.

    python -m proof.workers [--kills 20] [--seed 0]

torchrun restarts the processes, and they continue from the last checkpoint. The kinds of parallelism take turns. Prints a line
per kill and a line of JSON; the exit code is 1 if a run does not end bit-identical.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from proof.torture import sets

WAYS = (
    *((2, "data", "cifar10"), (2, "hybrid", "cifar10"), (2, "towers", "paper")),
    *((4, "data", "cifar10"), (4, "hybrid", "cifar10")),
)
SETTINGS = {
    **{"model.norm": "batch", "model.width": 1 / 16, "model.whitening_init": "false", "model.dropout": 0.2},
    **{"images.input": 67, "images.upscale": 1, "schedule.progressive_resize": "[]", "optimizer.muon_lr": 0},
    "train.batch_size": 32,
}


def command(processes: int, parallel: str, variant: str, out: Path) -> list[str]:
    """Return the command that trains under torchrun."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d", "--max-restarts=3"]
    train = ["-m", "alexnet", "train", "digits", "--epochs", "5", "--parallel", parallel, "--variant", variant]
    return [sys.executable, *torchrun, "--rdzv-endpoint=localhost:0", *train, *sets(SETTINGS), "--out", str(out)]


def workers(parent: int) -> list[int]:
    """Return the child processes of a process."""
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def run(way: tuple[int, str, str], out: Path, kill_after: float | None, chance: np.random.Generator) -> tuple[float, str]:
    """Train to the end, with one kill that many seconds after the start; return the time taken, and where the kill hit."""
    began = time.monotonic()
    with (out.with_suffix(".log")).open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command(*way, out), stdout=log, stderr=log, env=environment)
        hit = "nowhere"
        if kill_after is not None:
            time.sleep(kill_after)
            if found := workers(process.pid):
                os.kill(int(chance.choice(found)), signal.SIGKILL)
                text = (out / "log.txt").read_text() if (out / "log.txt").exists() else ""
                hit = f"after epoch {text.count('train loss')}" if "batches" in text else "before training"
        code = process.wait()
    if code:
        raise SystemExit(f"{out}: exit code {code}, see {out.with_suffix('.log')}")
    return time.monotonic() - began, hit


def main() -> int:
    """Kill, compare and print; return the exit code."""
    parser = argparse.ArgumentParser(description="Kill workers; see the file's head.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, began = np.random.default_rng(options.seed), time.monotonic()
    hits: collections.Counter[str] = collections.Counter()
    folder = Path(tempfile.mkdtemp(prefix="alexnet-workers-"))
    whole, wrong = dict[tuple[int, str, str], tuple[float, bytes]](), 0
    number = kills = 0
    while kills < options.kills:
        way, out = WAYS[number % len(WAYS)], folder / f"{number}"
        number += 1
        if way not in whole:
            place = folder / f"whole-{way[0]}-{way[1]}"
            whole[way] = (run(way, place, None, chance)[0], (place / "model.safetensors").read_bytes())
        seconds, weights = whole[way]
        _, hit = run(way, out, seconds * chance.uniform(0.2, 0.9), chance)
        if hit == "nowhere":  # it was over
            continue
        kills += 1
        same = (out / "model.safetensors").read_bytes() == weights
        wrong += not same
        hits[hit.split(" epoch")[0]] += 1
        print(
            f"{kills:3}  {way[0]} processes, {way[1]:7} killed {hit:16} {'same weights' if same else 'OTHER WEIGHTS'}",
            flush=True,
        )
    seconds = round(time.monotonic() - began)
    print(json.dumps({"proof": "workers", "kills": options.kills, "wrong": wrong, "hits": hits, "seconds": seconds}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
