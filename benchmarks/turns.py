"""Shared by all benchmarks: measure alternatives in turn, and print a message if something required is missing.

The speed of a machine drifts, so only measurements taken alternately can be compared.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import alexnet

Measured = Callable[[], float]  # does its work once and returns a figure: seconds, or images per second


def timed(work: Callable[[], object], calls: int = 1) -> Measured:
    """Return a function that does `work` this many times in a row, and returns the seconds per call."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls

    return run


def in_turn(ways: Mapping[str, Measured], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Measure all alternatives, round after round; return the figures of each, without those of the warm-up rounds."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + warm_up):
        for way, measured in ways.items():
            figure = measured()
            if turn >= warm_up:
                found[way].append(figure)
    return found


def ratios(figures: Sequence[float], others: Sequence[float]) -> list[float]:
    """Divide round by round."""
    return [figure / other for figure, other in zip(figures, others, strict=True)]


def spread(figures: Sequence[float], form: str = ".2f") -> str:
    """Return the median, with the minimum and the maximum in brackets."""
    middle, low, high = (f(figures) for f in (statistics.median, min, max))
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def skip(why: str) -> NoReturn:
    """Print why nothing is measured, and exit without an error, so that `make bench` continues."""
    print(f"skipped: {Path(sys.argv[0]).stem}: {why}")
    sys.exit(0)


def real_data() -> Path:
    """Return the folder of real images."""
    return Path(os.environ.get("ALEXNET_TEST_DATA") or skip("ALEXNET_TEST_DATA names no folder of real images"))


def trained_run() -> alexnet.Run:
    """Return the run named on the command line, or by RUN in the environment."""
    import alexnet

    named = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("RUN")
    return alexnet.load(named or skip(f"name a run trained on CIFAR-10: python -m benchmarks.{Path(sys.argv[0]).stem} RUN"))
