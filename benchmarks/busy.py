"""A training step of `fast` alone and beside a busy process, with all threads and with one fewer, in turn, in one process.

The busy process computes on one thread without ever waiting; it is stopped while others are measured. How threads wait for each
other is a setting of OpenMP, read when torch is imported, so it is compared by running this several times:
`OMP_WAIT_POLICY=passive python -m benchmarks.busy`.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from benchmarks.step import Case, Step, ours
from benchmarks.turns import Measured, in_turn, ratios, skip, spread, timed

from alexnet.network.device import keep_freed_memory

CASE = Case("fast", 64, 25, 4)
ROUNDS, STEPS = 7, 2  # steps in a row; another one before them is not measured, as threads and caches have to settle
WANTED = 0.6  # of the speed alone
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_PROC_BIND", "OMP_PLACES", "OMP_DYNAMIC", "KMP_BLOCKTIME")


@contextmanager
def neighbour() -> Iterator[Callable[[bool], None]]:
    """Start a busy process, stopped; yield a function that lets it run or stops it."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])

    def run(wanted: bool) -> None:
        process.send_signal(signal.SIGCONT if wanted else signal.SIGSTOP)

    try:
        run(False)
        yield run
    finally:
        process.kill()
        process.wait()


def measured(step: Step, threads: int, busy: bool, run: Callable[[bool], None]) -> Measured:
    """Return a function that takes steps with this many threads, alone or beside the busy process: images per second."""

    def rate() -> float:
        torch.set_num_threads(threads)
        run(busy)
        step()
        seconds = timed(step, STEPS)()
        run(False)
        return CASE.batch / seconds

    return rate


def main() -> None:
    """Measure, print a table and a line of JSON."""
    threads = torch.get_num_threads()
    if threads < 2:
        skip("needs two threads or more")
    step = ours(CASE, torch.device("cpu"))
    cases = {(count, busy): f"{count} threads" + ", busy" * busy for count in (threads, threads - 1) for busy in (False, True)}
    with neighbour() as run:
        ways = {name: measured(step, count, busy, run) for (count, busy), name in cases.items()}
        rates = in_turn(ways, ROUNDS)
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    print(f"{CASE.recipe}, {CASE.batch} images, {threads} of {os.cpu_count()} cores, {settings or 'OpenMP as it is'}")
    alone, found = rates[cases[threads, False]], {}
    for name, figures in rates.items():
        share = ratios(figures, alone)
        found[name] = {"images_per_second": statistics.median(figures), "ratio": statistics.median(share)}
        wanted = f", wanted {WANTED} or more" if "busy" in name else ""
        print(f"  {name:16} {spread(figures, '.1f'):22} images/s: {spread(share)} of {threads} threads alone{wanted}")
    print(json.dumps({"benchmark": "busy", "settings": settings, **found}))


if __name__ == "__main__":
    if os.name == "nt":
        skip("needs a system that can stop processes")
    keep_freed_memory()
    main()
