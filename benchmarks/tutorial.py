"""A training step of `cifar10` at 227x227, alternating with the tutorial's own Keras network in TensorFlow, in one run.

Keras runs in `.venv-keras` (created by `make prove`), in a separate process that only computes on request. There are three
peers: the tutorial as written, the same in Keras' mixed bfloat16, and PyTorch's plain autocast without channels last.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from benchmarks.step import Case, ours, plain
from benchmarks.turns import Measured, in_turn, ratios, skip, spread, timed

from alexnet.network.device import choose_device, keep_freed_memory
from alexnet.network.fast.fuse import fused_forms

ROUNDS, SIZE = 7, 227
ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-keras" / "bin" / "python"


def asked(*arguments: str) -> Measured:
    """Start `tensorflow_peers` in `.venv-keras`; return a function that runs one turn and returns its seconds."""
    command = [str(PYTHON), "-m", "benchmarks.tensorflow_peers", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    questions, answers = process.stdin, process.stdout
    if answers.readline().strip() != "ready":
        sys.exit(f"{' '.join(command)} failed: run it by hand to see why")

    def work() -> float:
        questions.write("\n")
        questions.flush()
        return float(answers.readline())

    return work


def measure(batch: int) -> dict[str, float]:
    """Time all steps in turn, print a table, and return the ratios."""
    case, device = Case("cifar10", batch, SIZE), choose_device()
    ways = {
        "ours": timed(ours(case, device)),
        "plain autocast": timed(plain(case, device, "bfloat16")),
        "Keras as written": asked("step", "cifar10", str(batch), "float32"),
        "Keras, mixed bfloat16": asked("step", "cifar10", str(batch), "mixed_bfloat16"),
    }
    times = in_turn(ways, ROUNDS)
    print(f"cifar10, batches of {batch}, {torch.get_num_threads()} threads")
    found = {}
    for way, taken in times.items():
        faster = ratios(taken, times["ours"])
        found[way] = statistics.median(faster)
        print(f"  {way:22} {batch / statistics.median(taken):6.1f} images/s; ours is {spread(faster)} times as fast")
    return found


if __name__ == "__main__":
    if not PYTHON.exists():
        skip("no .venv-keras here: make prove installs it")
    keep_freed_memory()
    found = {str(batch): measure(batch) for batch in (32, 128)}
    print(json.dumps({"benchmark": "tutorial", "fast_forms": fused_forms(choose_device()), **found}))
