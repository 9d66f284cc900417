"""How sure is an accuracy: of one test split, and of five folds over all photos.

    python -m proof.folds OUT RUN

On 700 photos of cats and dogs in ALEXNET_TEST_DATA, a head on the features of RUN is trained with five seeds of the split:
once with a test set of a fifth, and in five folds. Prints each accuracy with its interval, and the spread over the seeds.
"""

import csv
import os
import sys
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

import alexnet
from alexnet.inference.metrics import wilson_interval

PHOTOS, SEEDS = 700, 5


def main() -> None:
    """Train, and print the table."""
    out, source = Path(sys.argv[1]), sys.argv[2]
    names = sorted((Path(os.environ["ALEXNET_TEST_DATA"]) / "cats-dogs" / "train").absolute().iterdir())
    names = [names[i] for i in np.sort(np.random.default_rng(0).permutation(len(names))[:PHOTOS])]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *((name, name.name.partition(".")[0]) for name in names)])
    found: dict[str, list[tuple[float, int, float]]] = {"one split": [], "five folds": []}
    for seed in range(SEEDS):
        settings = {"data.split_seed": seed}
        run = alexnet.train(out / "photos.csv", recipe="head", weights=source, out=out / f"one-{seed}", settings=settings)
        (run.path / "model.safetensors").unlink()  # 230 MB each
        folds = alexnet.cross_validate(
            out / "photos.csv", recipe="head", weights=source, out=out / f"folds-{seed}", settings=settings
        )
        test = run.summary["test"]
        found["one split"].append((test["top1"], test["images"], run.summary["seconds"]))
        found["five folds"].append((folds["top1"], folds["images"], folds["seconds"]))
    print("| measured on | photos | top-1, each seed | 95 % interval of the first | spread over seeds | time |")
    print("|---|---|---|---|---|---|")
    for way, rows in found.items():
        top1, images, seconds = ([row[i] for row in rows] for i in range(3))
        low, high = wilson_interval(top1[0], int(images[0]))
        shown = ", ".join(f"{100 * value:.1f}" for value in top1)
        interval = f"{low:.1%} to {high:.1%}: {100 * (high - low):.1f} points"
        print(f"| {way} | {images[0]} | {shown} | {interval} | {100 * stdev(top1):.1f} points | {fmean(seconds[1:]):.0f} s |")


if __name__ == "__main__":
    main()
