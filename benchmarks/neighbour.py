"""`alexnet train` with the recipe `fast`, and what a person might train instead, for the same minutes on the same images.

    make bench-neighbour DATA=… MINUTES=9    or: python -m benchmarks.neighbour DATA --minutes M [--seed S] [--json FILE]

Small images, such as CIFAR-10's, are for airbench94, photos for ResNet-18. Both networks start from nothing, have the same
training images, threads and precision, and follow the clock from opening the dataset to the result on the test set, which each
sees once. Images are decoded before. In that time, `fast` also evaluates the validation images, learns which images it does not
know, and writes its network and report. If a dataset declares validation images and no test set, they become the test set, and
others are held out of the training. Where several views of each test image would take a quarter of the time or more, there is
one. The order alternates: with an odd seed the neighbour comes first.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from benchmarks.small_recipes import ResNet18, SpeedRecord
from benchmarks.small_training import Kind, Session, opened, stored_at
from benchmarks.turns import skip

import alexnet
from alexnet.data.dataset import resolve
from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.errors import AlexNetError
from alexnet.inference.metrics import wilson_interval
from alexnet.network.device import choose_device, keep_freed_memory, resolve_precision
from alexnet.recipe import Recipe, load
from alexnet.run import RunFolder, read_metrics

LATE = 1.1  # times its minutes, from which a training has taken too long


class Result(NamedTuple):
    """What a training came to; accuracies are from 0 to 1: the mean of all views, and one view, the image as it is."""

    method: str
    top1: float
    one_view: float
    views: int
    tested: int
    images: int
    epochs: float
    images_per_second: float
    parameters: int
    seconds: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return wilson_interval(self.top1, self.tested)

    def row(self) -> str:
        """Return a row of the table."""
        low, high = self.interval
        accuracy = f"{self.top1:.1%} ({100 * low:.1f} to {100 * high:.1f}) | {self.views} | {self.one_view:.1%}"
        work = f"{self.images:,} | {self.epochs:.1f} | {self.images_per_second:.0f}"
        return f"| {self.method} | {accuracy} | {work} | {self.parameters / 1e6:.2f} M | {self.seconds:.0f} |"


HEADER = """
| method | test top-1 (95 %) | views | with one view | images seen | epochs | images/s | parameters | seconds |
|---|---|---|---|---|---|---|---|---|"""


def recipe_for(data: str) -> Recipe:
    """Return the recipe `fast` for a dataset, which may be the folder of CIFAR-10 as its authors publish it."""
    folder = Path(data)
    if (folder / "data_batch_1").exists():
        return load("fast").with_settings({"data.dataset": "cifar10", "data.root": str(folder.absolute().parent)})
    table = open_table(data)
    if "val" in table.counts() and "test" not in table.counts():
        data = str(listing(table))
    return load("fast").with_settings({"data.dataset": data})


def listing(table: Table) -> Path:
    """Write a listing of a dataset in which the validation images are the test set."""
    if table.root is None or table.contents is not None:
        skip(f"{table.name} has no test set, and is no folder of images")
    path = Path("build") / "neighbour" / f"{table.name}.csv"  # always the same, so that decoded images are kept
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "split"))
        for i, (target, split) in enumerate(zip(table.targets, table.splits, strict=True)):
            writer.writerow((table.file(i).absolute(), table.labels[target], "test" if split == "val" else split))
    return path


def neighbour(kind: Kind, recipe: Recipe, minutes: float, seed: int) -> Result:
    """Train and test a neighbour."""
    began = time.monotonic()
    session = Session(kind, recipe, seed, began + 60 * minutes)
    seen, seconds = session.fit()
    top1, one_view, views = session.evaluate()
    epochs, rate, parameters = seen / len(session.train), seen / seconds, count(session.way.network)
    took = time.monotonic() - began
    return Result(kind.name, top1, one_view, views, len(session.test), seen, epochs, rate, parameters, took)


def ours(recipe: Recipe, minutes: float, seed: int, trained_on: int) -> Result:
    """Train and test as `alexnet train DATA --minutes M --seed S` does."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"train.minutes": minutes, "train.seed": seed, "data.root": recipe.data.root}
        run = alexnet.train(recipe.data.dataset, recipe=recipe.name, out=Path(folder) / "run", settings=settings)
        took, test = time.monotonic() - began, run.summary["test"]
        rows = read_metrics(RunFolder(run.path), ("images", "images_per_second"))
    seen, seconds = int(sum(row["images"] for row in rows)), sum(row["images"] / row["images_per_second"] for row in rows)
    top1, epochs, parameters = test["top1"], seen / trained_on, count(run.network)
    return Result(recipe.name, top1, top1, 1, test["images"], seen, epochs, seen / seconds, parameters, took)


def count(network: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(value.numel() for value in network.parameters())


def verdict(one: Result, other: Result) -> str:
    """Say which is better, and by how much."""
    better, worse = (other, one) if other.top1 > one.top1 else (one, other)
    chance = ", which may be chance, as the intervals overlap" if better.interval[0] <= worse.interval[1] else ""
    return f"{better.method} is better than {worse.method} by {100 * (better.top1 - worse.top1):.1f} points{chance}"


def compare(data: str, minutes: float, seed: int) -> dict[str, object]:
    """Train both, print the table, and return the results."""
    recipe = recipe_for(data)
    resolved = resolve(recipe, open_table(recipe.data.dataset, recipe.data.root, settings=recipe.data))
    kind: Kind = SpeedRecord if resolved.images.scale_factor > 1 else ResNet18
    images, _ = opened(stored_at(recipe, kind.stored))  # decoded here, and those of `fast` next
    opened(resolved)
    trained_on = len(images.images("train"))
    if not len(images.images("test")):
        skip(f"{data} has no test images")
    turns = [lambda: ours(recipe, minutes, seed, trained_on), lambda: neighbour(kind, recipe, minutes, seed)]
    results = [turn() for turn in turns[:: -1 if seed % 2 else 1]]
    device = choose_device()
    hardware = f"{device.type}, {resolve_precision(device, 'auto')}, {torch.get_num_threads()} threads"
    counts = f"{trained_on:,} images to train on, {results[0].tested:,} to test on"
    print(f"{data}: {counts}; {minutes:g} minutes, seed {seed}; {hardware}")
    print("\n".join([HEADER, *(result.row() for result in results)]))
    print(verdict(*results))
    if any(result.seconds > LATE * 60 * minutes for result in results):
        print("note: a training took longer than its minutes, as it does where other work runs: compare it with care")
    rows = [result._asdict() | {"interval": result.interval} for result in results]
    return {"benchmark": "neighbour", "data": data, "minutes": minutes, "seed": seed, "hardware": hardware, "results": rows}


def main() -> None:
    """Print the table, and one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", nargs="?", help="a dataset, as `alexnet train` takes it")
    parser.add_argument("--minutes", type=float, default=9.0, help="of each training (default: 9)")
    parser.add_argument("--seed", type=int, default=0, help="an odd one lets the neighbour begin (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the line of JSON to this file, too")
    options = parser.parse_args()
    if options.data is None:
        skip("name a dataset: make bench-neighbour DATA=…")
    if options.json:
        options.json.open("a").close()  # to fail before the training rather than after it
    keep_freed_memory()
    try:
        line = json.dumps(compare(options.data, options.minutes, options.seed))
    except AlexNetError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped")
    print(line)
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


if __name__ == "__main__":
    main()
