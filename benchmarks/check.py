"""How the time of `data check` grows: seconds for 1,000, 10,000 and 60,000 files of CIFAR-10, alternating.

Needs ALEXNET_TEST_DATA. The peer is the same check on a tenth of the files: ten times as many should take ten times as long.
"""

from __future__ import annotations

import json
import statistics

import numpy as np
from benchmarks.turns import Measured, in_turn, ratios, real_data, spread, timed

from alexnet.data.check import check
from alexnet.data.sources import open_table
from alexnet.data.table import Table

COUNTS = (1_000, 10_000)
ROUNDS = 3


def checking(table: Table, count: int) -> Measured:
    """Return a check of `count` images, evenly spaced in the table."""
    part = table.select(np.arange(0, len(table), len(table) // count)[:count])
    return timed(lambda: check(part))


if __name__ == "__main__":
    table = open_table(real_data() / "cifar10")
    checking(table, COUNTS[0])()  # workers started, files in memory
    few, many = in_turn({str(count): checking(table, count) for count in COUNTS}, ROUNDS, warm_up=0).values()
    for count, times in zip(COUNTS, (few, many), strict=True):
        print(f"{count:6,} files: {spread(times)} s")
    cost = ratios(many, few)
    print(f"10 times as many cost {spread(cost, '.1f')} times as much")
    whole = checking(table, len(table))()
    print(f"{len(table):6,} files: {whole:6.2f} s")
    print(json.dumps({"benchmark": "check", "ratio": statistics.median(cost), "seconds_60000": whole}))
