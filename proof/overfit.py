"""How many steps a recipe takes to memorise 64 photos: a network that cannot is built or trained wrongly.

    python proof/overfit.py RECIPE FOLDER EPOCHS [KEY=VALUE ...]

FOLDER has class folders. The same 64 photos are used for training and validation (centre crop, no noise, no dropout); the rate
stays constant.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import alexnet
from alexnet.recipe import parse_settings

PHOTOS = 64


def same_photos(source: Path, target: Path) -> None:
    """Copy equally many photos of each class, `PHOTOS` in all, once for training and once for validation."""
    classes = sorted(folder for folder in source.iterdir() if folder.is_dir())
    for number in range(PHOTOS):
        folder, row = classes[number % len(classes)], number // len(classes)
        photo = sorted(folder.iterdir())[row]
        for split in ("train", "val"):
            (target / split / folder.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, target / split / folder.name)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python proof/overfit.py RECIPE FOLDER EPOCHS [KEY=VALUE ...]")
    name, source, epochs, *changes = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        same_photos(Path(source), Path(folder) / "photos")
        constant = {"schedule.kind": "constant", "schedule.table": [], "train.epochs": int(epochs)}
        began = time.monotonic()
        run = alexnet.train(
            Path(folder) / "photos", recipe=name, out=Path(folder) / "run", settings={**constant, **parse_settings(changes)}
        )
        seconds = time.monotonic() - began
        with (run.path / "metrics.csv").open() as file:
            right = [float(row["val_top1"]) for row in csv.DictReader(file)]
        size = min(PHOTOS, run.recipe.train.batch_size)
    steps = [(epoch + 1) * PHOTOS // size for epoch, share in enumerate(right) if share == 1.0]
    found = f"all {PHOTOS} right after {steps[0]} steps" if steps else f"{right[-1]:.0%} of {PHOTOS} right"
    print(f"{name}: {found} of {size} photos, {seconds:.0f} s")
    print(json.dumps({"benchmark": "overfit", "recipe": name, "steps": steps[0] if steps else None, "top1": right[-1]}))
