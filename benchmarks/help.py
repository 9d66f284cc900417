"""Time of `alexnet --help`: the median of 10 starts, alternating with a bare `python -c pass`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.turns import in_turn, timed

RUNS = 10
COMMANDS = {
    "alexnet --help": [str(Path(sys.executable).with_name("alexnet")), "--help"],
    "python": [sys.executable, "-c", "pass"],
}


if __name__ == "__main__":
    starts = {
        name: timed(partial(subprocess.run, command, check=True, capture_output=True)) for name, command in COMMANDS.items()
    }
    found = in_turn(starts, RUNS)
    for name, times in found.items():
        print(f"{name:15} median {statistics.median(times):.3f} s, {min(times):.3f} to {max(times):.3f}")
    print(json.dumps({"benchmark": "help", **{name: statistics.median(times) for name, times in found.items()}}))
