"""How the cost of `data check` grows: seconds for 1,000, 10,000 and 60,000 files of CIFAR-10, in turn.

Needs ALEXNET_TEST_DATA. Its peer is itself on a tenth of the files: ten times as many should cost ten times as much.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from alexnet.data.check import check
from alexnet.data.sources import open_table
from alexnet.data.table import Table

COUNTS = (1_000, 10_000)
ROUNDS = 3


def seconds(table: Table, count: int) -> float:
    """Return how long the check of every so manieth image takes."""
    part = table.select(np.arange(0, len(table), len(table) // count)[:count])
    start = time.perf_counter()
    check(part)
    return time.perf_counter() - start


if __name__ == "__main__":
    if not (folder := os.environ.get("ALEXNET_TEST_DATA")):
        sys.exit("ALEXNET_TEST_DATA names no folder of real images")
    table = open_table(Path(folder, "cifar10"))
    seconds(table, COUNTS[0])  # workers started, files in memory
    rounds = [[seconds(table, count) for count in COUNTS] for _ in range(ROUNDS)]
    ratios = [many / few for few, many in rounds]
    for count, times in zip(COUNTS, zip(*rounds, strict=True), strict=True):
        print(f"{count:6,} files: {statistics.median(times):6.2f} s ({min(times):.2f} to {max(times):.2f})")
    print(f"10 times as many cost {statistics.median(ratios):.1f} times as much ({min(ratios):.1f} to {max(ratios):.1f})")
    whole = seconds(table, len(table))
    print(f"{len(table):6,} files: {whole:6.2f} s")
    print(json.dumps({"benchmark": "check", "ratio": statistics.median(ratios), "seconds_60000": whole}))
