"""Images a second of decoding and batching shards, on one core, against the loaders of webdataset and PyTorch, and tf.data.

`python -m benchmarks.shards FOLDER [IMAGES]` makes shards of 200,000 photos of 256 pixels in FOLDER, or of IMAGES, from those
of ALEXNET_TEST_DATA, unless they are there. All ways make batches of 128 images, 227 x 227 x 3 uint8, of 5,120 images in
random order, with one decoding process or thread; webdataset shuffles within a window of 5,000, PyTorch's loader and tf.data
read files. webdataset and tf.data, in `.venv-keras`, are skipped where they are not installed.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from benchmarks.turns import Measured, in_turn, ratios, real_data, spread
from benchmarks.tutorial import PYTHON, asked
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import alexnet
from alexnet.data.batches import SplitImages, batch_bounds, epoch_batches
from alexnet.data.on_demand import OnDemand
from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.recipe import Preprocessing

SIDE, BATCH, MEASURED, ROUNDS = 227, 128, 5_120, 3
IMAGES = Preprocessing(cache_size=SIDE, input=SIDE, reduced_decode=True)


def make(folder: Path, count: int) -> None:
    """Write shards of links to the photos, again and again, until there are enough; and a folder of the same files."""
    photos = [path for name in ("imagenette", "cats-dogs") for path in sorted((real_data() / name).rglob("*.[jJ][pP]*[gG]"))]
    listing = folder / "photos.csv"
    folder.mkdir(parents=True)
    rows = [f"{'photos' if i % 2 else 'more'}/{i:07}.jpg,{i % 10}" for i in range(count)]
    for name in ("photos", "more"):
        (folder / name).mkdir()
    for i, row in enumerate(rows):
        (folder / row.partition(",")[0]).symlink_to(photos[i % len(photos)].absolute())
    listing.write_text("\n".join(["image,label", *rows]) + "\n")
    alexnet.shard(listing, folder / "shards", side=256)


def crop(content: bytes) -> NDArray[np.uint8]:
    """Decode a photo as a loader of PyTorch would, with Pillow alone."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = SIDE / min(image.size)
    image = image.resize(
        (max(SIDE, round(image.width * scale)), max(SIDE, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))


class Files(Dataset[torch.Tensor]):
    """Photos as files."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(crop(self.paths[i].read_bytes()).copy())


def run_through(batches: Iterator[object]) -> None:
    """Take all batches."""
    for _ in batches:
        pass


def ours(table: Table) -> None:
    """Batches on demand, in random order."""
    images = SplitImages(OnDemand(table, IMAGES), np.arange(MEASURED), table.targets)
    run_through(epoch_batches(images, batch_bounds(MEASURED, BATCH), 0, 1, workers=1))


def by_webdataset(folder: Path) -> None:
    """Batches of webdataset, shuffled within a window."""
    import webdataset

    shards = sorted(map(str, (folder / "shards").glob("*.tar")))
    dataset = webdataset.WebDataset(shards, shardshuffle=100, seed=0).shuffle(5000).to_tuple("jpg", "cls").map_tuple(crop, int)
    loader = webdataset.WebLoader(dataset.batched(BATCH), batch_size=None, num_workers=1)
    batches = iter(loader)
    run_through(next(batches) for _ in range(MEASURED // BATCH))


def by_torch(folder: Path) -> None:
    """Batches of PyTorch's loader over files, in random order."""
    paths = sorted(folder.glob("[pm]*/*.jpg"))[:MEASURED]
    run_through(iter(DataLoader(Files(paths), BATCH, shuffle=True, num_workers=1)))


def by_tensorflow(folder: Path) -> Measured:
    """Return what measures batches of tf.data over files, in order, as it would draw them all first to shuffle: images/s."""
    listing = folder / "measured.txt"
    listing.write_text("\n".join(map(str, sorted(folder.glob("[pm]*/*.jpg"))[:MEASURED])))
    settings = {"source": str(listing), "batch": BATCH, "side": SIDE, "input": SIDE, "threads": 1, "shift": 0}
    turn = asked("data", json.dumps({**settings, "horizontal_flip": False, "mean": [0] * 3, "std": [1] * 3}))
    return lambda: MEASURED / turn()


def main(folder: Path, count: int) -> None:
    """List the shards, then measure each way in turn."""
    if not (folder / "shards").exists():
        make(folder, count)
    start = time.perf_counter()
    table = open_table(folder / "shards")
    print(f"{len(table):,} images listed in {time.perf_counter() - start:.1f} s")
    ways: dict[str, Callable[[], None]] = {"ours": lambda: ours(table), "PyTorch, Pillow": lambda: by_torch(folder)}
    try:
        import webdataset  # noqa: F401 - whether it is there

        ways["webdataset"] = lambda: by_webdataset(folder)
    except ImportError:
        print("webdataset is not installed")

    def pace(way: str) -> float:
        start = time.perf_counter()
        ways[way]()
        return MEASURED / (time.perf_counter() - start)

    measured: dict[str, Measured] = {way: lambda way=way: pace(way) for way in ways}
    if PYTHON.exists():
        measured["tf.data"] = by_tensorflow(folder)
    else:
        print("no .venv-keras here: make prove installs it")
    found = in_turn(measured, ROUNDS, warm_up=0)
    for way, paces in found.items():
        times = "" if way == "ours" else f", ours {spread(ratios(found['ours'], paces))} times as fast"
        print(f"{way:16} {spread(paces, '.0f')} images/s{times}")
    print(json.dumps({"benchmark": "shards", **{way: float(np.median(paces)) for way, paces in found.items()}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200_000)
