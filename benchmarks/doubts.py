"""Wrong labels found: `alexnet data doubts` against cleanlab, from the same probabilities.

    make bench-doubts RUN=runs/…    or: python -m benchmarks.doubts RUN

Of 1,000 photos of Imagenette and 5,000 test images of CIFAR-10 in ALEXNET_TEST_DATA, 5 % get another label, drawn at random.
Folds of `head` on the features of RUN, trained on CIFAR-10's training images, predict every image. Both lists are compared with
the labels that were made wrong, for three draws: precision and recall of the whole list, and average precision of the order.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from benchmarks import turns
from sklearn.metrics import average_precision_score

import alexnet
from alexnet.doubts.confident import doubtful
from alexnet.folds.predictions import Predictions

WRONG, DRAWS, FOLDS = 0.05, 3, 5
PEER = Path(".venv-cleanlab/bin/python")
SETS = {"Imagenette": ("imagenette/train", 1000), "CIFAR-10": ("cifar10/test", 5000)}


def listing(root: Path, count: int, draw: int, path: Path) -> dict[str, str]:
    """Write a CSV file of `count` images of a folder of classes, some with wrong labels; return the right ones by image."""
    rng = np.random.default_rng(draw)
    images = sorted(file for file in root.glob("*/*") if file.is_file())
    images = [images[i] for i in np.sort(np.random.default_rng(0).permutation(len(images))[:count])]
    classes = sorted({image.parent.name for image in images})
    wrong = set(rng.permutation(len(images))[: round(WRONG * len(images))].tolist())
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label"))
        for i, image in enumerate(images):
            others = [name for name in classes if name != image.parent.name]
            writer.writerow((image, rng.choice(others) if i in wrong else image.parent.name))
    return {image.as_posix(): image.parent.name for image in images}


def peer(path: Path) -> dict[str, list[int]]:
    """Return what cleanlab finds in an archive of predictions."""
    command = [str(PEER), "-m", "benchmarks.cleanlab_peer", str(path)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def scores(found: np.ndarray, suspicion: np.ndarray, wrong: np.ndarray) -> tuple[float, float, float]:
    """Return precision and recall of a list, and the average precision of an order of all images."""
    right = wrong[found].sum()
    return right / max(1, len(found)), right / wrong.sum(), float(average_precision_score(wrong, suspicion))


def main() -> None:
    """Print the table, and one line of JSON."""
    run, data = turns.trained_run(), turns.real_data()
    if not PEER.exists():
        turns.skip("cleanlab is not installed: make .venv-cleanlab/installed")
    results: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    work = Path(tempfile.mkdtemp())
    for name, (folder, count) in SETS.items():
        results[name] = {"alexnet": [], "cleanlab": []}
        for draw in range(DRAWS):
            table = work / f"{name}.csv"  # the same name, so that the codes of its images are there already
            truth = listing((data / folder).absolute(), count, draw, table)
            out = work / f"{name}-{draw}"
            folds = alexnet.cross_validate(table, folds=FOLDS, recipe="head", weights=run.path, out=out)
            whole = Predictions.load(Path(folds["files"]["arrays"]))
            targets, p = whole.targets, whole.probabilities
            wrong = np.array([truth[image] != whole.labels[t] for image, t in zip(whole.images, targets, strict=True)])
            ours, theirs = doubtful(targets, p), peer(Path(folds["files"]["arrays"]))
            own = p[np.arange(len(p)), targets]
            results[name]["alexnet"].append(scores(ours, -own, wrong))
            results[name]["cleanlab"].append(scores(np.array(theirs["found"], int), -np.array(theirs["quality"]), wrong))
            print(f"{name}, draw {draw}: top-1 {folds['top1']:.1%} with the wrong labels", file=sys.stderr)
    shutil.rmtree(work)
    print(f"| images | by | precision | recall | average precision |  cleanlab {theirs['version']}\n|---|---|---|---|---|")
    for name, ways in results.items():
        for way, figures in ways.items():
            cells = (turns.spread([100 * figure[i] for figure in figures], ".1f") for i in range(3))
            print(f"| {name} | {way} | {' | '.join(cells)} |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
