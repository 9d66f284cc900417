"""Train on many images and watch the memory: it must not grow with the dataset, nor from epoch to epoch.

    python -m proof.memory [--images 50000] [--epochs 3]

The images are synthetic, 256x256, stored at full size: about 10 GB in the cache. Anonymous memory is counted, of this process
and the decoding processes, without memory-mapped files. Linux only. Prints the peak of each epoch.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image
from proof.processes import memory

import alexnet

LIMIT = 3e9  # bytes
GROWTH = 0.05  # of the first epoch's
DIFFERENT = 500  # files; the others are links to them
NARROW = {"model.width": 1 / 16, "images.cache_size": 256, "images.input": 67, "images.upscale": 1, "train.max_images": 0}


def note_most(metrics: Path, most: dict[int, int]) -> None:
    """Record the peak memory by number of finished epochs, in an endless loop."""
    while True:
        epochs = len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0
        most[epochs] = max(most.get(epochs, 0), memory(os.getpid(), anonymous=True))
        time.sleep(0.05)


def made_up(folder: Path, count: int) -> Path:
    """Write a CSV file that lists `count` photos with two labels, most of them links to a few files."""
    chance, rows = np.random.default_rng(0), []
    for i in range(count):
        path = folder / f"{i:06}.jpg"
        if i < DIFFERENT:
            small = chance.integers(0, 256, (9, 9, 3)).astype(np.uint8)
            Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC).save(path)
        else:
            os.link(folder / f"{i % DIFFERENT:06}.jpg", path)
        rows.append((path.name, "ab"[i % 2]))
    with (folder / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    return folder / "photos.csv"


def main() -> int:
    """Train, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Watch the memory of a training; see the file's head.")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["ALEXNET_CACHE"] = str(folder / "cache")
        (folder / "photos").mkdir()
        data = made_up(folder / "photos", options.images)
        most = dict[int, int]()
        threading.Thread(target=note_most, args=(folder / "run" / "metrics.csv", most), daemon=True).start()
        alexnet.train(data, out=folder / "run", settings={**NARROW, "train.epochs": options.epochs})
        size = sum(path.stat().st_size for path in (folder / "cache").rglob("*.u8"))
    print(f"{options.images:,} images, {size / 1e9:.1f} GB decoded")
    for epoch, used in most.items():
        what = {0: "decoding, and epoch 1", options.epochs: "evaluating at the end"}.get(epoch, f"epoch {epoch + 1}")
        print(f"{what:24}{used / 1e9:6.2f} GB of anonymous memory")
    trained = [most[epoch] for epoch in range(1, options.epochs)]
    grows = trained[-1] > trained[0] * (1 + GROWTH)
    print("it grows from epoch to epoch" if grows else "it does not grow from epoch to epoch")
    return int(grows or max(most.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
