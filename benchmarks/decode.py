"""What one core gives: JPEG photos decoded to the size at which they are cached, and batches taken from the cache.

    ALEXNET_TEST_DATA=… python -m benchmarks.decode

Decoding is timed in this process, by its processor time, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
from benchmarks.turns import in_turn, real_data, spread

from alexnet.data import decode

PHOTOS, ROUNDS, BATCH = 300, 5, 128


def per_second(count: int, work: Callable[[], object]) -> Callable[[], float]:
    """Return what does `work` on `count` images and returns images per second of processor time."""

    def run() -> float:
        start = time.process_time()
        work()
        return count / (time.process_time() - start)

    return run


def main() -> None:
    """Time all in turn, and print a line for each."""
    files = sorted((real_data() / "imagenette" / "train").rglob("*.JPEG"))[:PHOTOS]
    ways: dict[str, Callable[[], float]] = {}
    for side in (128, 227):
        options = {"cache_size": side, "fit": "crop", "filter": "bicubic", "reduced_decode": True}
        images = np.stack([decode.stored_pixels(file, **options) for file in files])
        order = np.random.default_rng(0).permutation(len(files))[:BATCH]

        def decoding(options: dict[str, object] = options) -> None:
            for file in files:
                decode.stored_pixels(file, **options)

        def batches(images: np.ndarray = images, order: np.ndarray = order) -> None:
            for _ in range(20):
                images[order]

        ways[f"JPEG decoded to {side} pixels"] = per_second(len(files), decoding)
        ways[f"taken from the cache at {side} pixels"] = per_second(20 * BATCH, batches)
    found = in_turn(ways, ROUNDS)
    for name, figures in found.items():
        print(f"{name:34} {spread(figures, ',.0f')} images/s")
    print(json.dumps({"benchmark": "decode", **{name: sorted(figures)[len(figures) // 2] for name, figures in found.items()}}))


if __name__ == "__main__":
    main()
