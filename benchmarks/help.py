"""How long `alexnet --help` takes: the median of 10 starts, beside a bare `python -c pass` in turn with it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 10
COMMANDS = {
    "alexnet --help": [str(Path(sys.executable).with_name("alexnet")), "--help"],
    "python": [sys.executable, "-c", "pass"],
}


def seconds(command: list[str]) -> float:
    """Return how long a command takes, once."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    for command in COMMANDS.values():
        seconds(command)  # files into memory
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(RUNS)]
    found = {name: [r[name] for r in rounds] for name in COMMANDS}
    for name, times in found.items():
        print(f"{name:15} median {statistics.median(times):.3f} s, {min(times):.3f} to {max(times):.3f}")
    print(json.dumps({"benchmark": "help", **{name: statistics.median(times) for name, times in found.items()}}))
