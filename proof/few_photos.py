"""How many photos does which way of training need: from nothing, a head on trained features, fine-tuning.

    python -m proof.few_photos OUT SOURCE… [--photos 50 200 700] [--recipes fast head finetune] [--set KEY=VALUE]…

SOURCE is a run to start from. From the photos of cats and dogs in ALEXNET_TEST_DATA, each of three splits sets 300 aside for
the test, and the first 50, 200 and 700 of the others train, a tenth of them for validation. Trainings that are finished in OUT
are not repeated. Prints a table of test accuracies and seconds: mean, and the least and the most of the splits. At the end, it
adds a class to the largest set, and prints the seconds of the head with the codes of the other photos there.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np

import alexnet
from alexnet.recipe import parse_settings

SPLITS, TEST, VALIDATION = 3, 300, 0.1


def listing(out: Path, photos: Path, count: int, split: int, more: Path | None = None) -> Path:
    """Write a CSV file of `count` photos for training and validation, and of those for the test; with `more`, a third class."""
    names = sorted(photos.iterdir())
    order = np.random.default_rng(split).permutation(len(names))
    rows = [(names[i], names[i].name.partition(".")[0], "test") for i in order[:TEST]]
    validated = round(count * VALIDATION)
    for place, i in enumerate(order[TEST : TEST + count]):
        rows.append((names[i], names[i].name.partition(".")[0], "val" if place < validated else "train"))
    for place, image in enumerate(sorted(more.iterdir())[:50] if more else ()):
        rows.append((image, "more", "val" if place < 5 else "test" if place < 10 else "train"))
    path = out / f"{'more' if more else 'photos'}-{count}-{split}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "split"))
        writer.writerows(rows)
    return path


def trained(folder: Path, data: Path, recipe: str, source: str, settings: list[str]) -> dict[str, float]:
    """Train, unless it is done; return the test accuracy, the seconds and those of processor time."""
    result = folder / "took.json"
    if not result.exists():
        shutil.rmtree(folder, ignore_errors=True)
        began, used = time.monotonic(), time.process_time()
        weights = None if recipe == "fast" else source
        run = alexnet.train(data, recipe=recipe, weights=weights, out=folder, settings=parse_settings(settings))
        seconds, cpu = time.monotonic() - began, time.process_time() - used
        run_top1 = {split: run.summary[split]["top1"] for split in ("test", "validation")}
        (folder / "model.safetensors").unlink()  # 230 MB each
        result.write_text(json.dumps({**run_top1, "seconds": seconds, "cpu": cpu}))
    figures = json.loads(result.read_text())
    print(f"{folder.name}: test {figures['test']:.1%}, {figures['seconds']:.1f} s ({figures['cpu']:.1f} s of processor time)")
    return dict(figures)


def rows(options: argparse.Namespace, photos: Path) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table."""
    for recipe in options.recipes:
        for source in [""] if recipe == "fast" else options.sources:
            cells = []
            for count in options.photos:
                results = [
                    trained(
                        options.out / "-".join(filter(None, (recipe, Path(source).name, str(count), str(split)))),
                        listing(options.out, photos, count, split), recipe, source, options.set,
                    )
                    for split in range(SPLITS)
                ]  # fmt: skip
                top1 = [100 * result["test"] for result in results]
                seconds, cpu = (fmean(result[name] for result in results) for name in ("seconds", "cpu"))
                cells.append(f"{fmean(top1):.1f} ({min(top1):.1f} to {max(top1):.1f}), {seconds:.0f} s ({cpu:.0f} s)")
            yield recipe, Path(source).name, *cells


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--photos", nargs="+", type=int, default=[50, 200, 700])
    parser.add_argument("--recipes", nargs="+", default=["fast", "head", "finetune"])
    parser.add_argument("--set", nargs="*", default=[])
    options = parser.parse_args()
    data = Path(os.environ["ALEXNET_TEST_DATA"])
    options.out.mkdir(parents=True, exist_ok=True)
    table = [("recipe", "source", *(f"{count} photos: test top-1 (%), time" for count in options.photos))]
    table += rows(options, data / "cats-dogs" / "train")
    for row in table:
        print(f"| {' | '.join(row)} |")
    classes = sorted((data / "imagenette" / "train").iterdir())
    for source in options.sources if "head" in options.recipes else ():
        more = listing(options.out, data / "cats-dogs" / "train", options.photos[-1], 0, classes[0])
        command = [sys.executable, "-m", "alexnet", "train", more, "--recipe", "head", "--weights", source]
        for times in ("new", "there"):
            out = options.out / f"more-{Path(source).name}-{time.time():.0f}"
            began, used = time.monotonic(), os.times()
            subprocess.run([*map(str, command), "--out", str(out)], check=True, capture_output=True)
            seconds, after = time.monotonic() - began, os.times()
            cpu = after.children_user + after.children_system - used.children_user - used.children_system
            print(f"{out.name}, a class more, its codes {times}: {seconds:.1f} s ({cpu:.1f} s of processor time)")


if __name__ == "__main__":
    main()
