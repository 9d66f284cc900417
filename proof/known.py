"""How well does a run tell images of other things: AUROC, false alarms and misses, against the calibrated maximum.

    python -m proof.known OUT [--seeds 1 2 3] [--minutes 3] [--set KEY=VALUE]…

From the images in ALEXNET_TEST_DATA, `fast` is trained on cats and dogs, on Imagenette's first five classes, and on CIFAR-10's
first eight; then each run sees its own test images, the images of the other two datasets, and the classes left out. Classes
that show the same as one of the run's are not counted as unknown: Imagenette's English springer is a dog, and CIFAR-10 has cats
and dogs. Last comes the run of `make demo`, trained on digits. Runs that are in OUT are not trained again. A false alarm is an
image of a class that the run calls unknown; a miss, an image of no class that it calls known.
"""

import argparse
import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import alexnet
from alexnet.inference.evaluate import Evaluation
from alexnet.network.known import PASSED
from alexnet.recipe import parse_settings

MOST = 1000  # images of each kind that a run sees
SPRINGER = "n02102040"  # the English springer


def classes(folder: Path, *splits: str) -> dict[str, list[tuple[Path, str]]]:
    """Return the images of each class folder, each with its split."""
    names = sorted(path.name for path in (folder / splits[0]).iterdir())
    return {name: [(path, split) for split in splits for path in sorted((folder / split / name).iterdir())] for name in names}


def write(path: Path, rows: Iterable[tuple[Path, str, str]]) -> Path:
    """Write a CSV file of images with their labels and splits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "split"))
        writer.writerows(rows)
    return path


def tasks(data: Path, out: Path) -> Iterator[tuple[str, str, dict[str, list[Path]]]]:
    """Yield a name, the dataset to train on, and images of other things by kind."""
    imagenette, cifar = classes(data / "imagenette", "train", "val"), classes(data / "cifar10", "train", "test")
    pets = sorted((data / "cats-dogs" / "train").iterdir())
    cats = [path for path in pets if path.name.startswith("cat")]

    def every(group: dict[str, list[tuple[Path, str]]], names: Iterable[str], split: str = "") -> list[Path]:
        return [path for name in names for path, its in group[name] if split in ("", its)]

    five, eight = list(imagenette)[:5], list(cifar)[:8]
    others = [name for name in imagenette if name != SPRINGER]
    tame = every(cifar, set(cifar) - {"cat", "dog"}, "test")
    yield (
        "cats-dogs",
        str(write(out / "cats-dogs.csv", ((path, path.name.partition(".")[0], "") for path in pets))),
        {"imagenette": every(imagenette, others), "cifar10": tame},
    )
    yield (
        "imagenette5",
        str(write(out / "imagenette5.csv", ((path, name, "") for name in five for path, _ in imagenette[name]))),
        {
            "left out": every(imagenette, [name for name in imagenette if name not in five]),
            "cats": cats,
            "cifar10": every(cifar, set(cifar) - {"dog"}, "test"),
        },
    )
    yield (
        "cifar8",
        str(write(out / "cifar8.csv", ((path, name, split) for name in eight for path, split in cifar[name]))),
        {"left out": every(cifar, list(cifar)[8:], "test"), "imagenette": every(imagenette, others)},
    )
    yield "digits", "digits", {"photos": [*every(imagenette, imagenette), *pets], "cifar10": every(cifar, cifar, "test")}


def trained(folder: Path, data: str, seed: int, minutes: float, settings: list[str]) -> alexnet.Run:
    """Train, unless it is done."""
    if (folder / "summary.json").exists():
        return alexnet.load(folder)
    length = {"train.epochs": 3} if data == "digits" else {"train.minutes": minutes}
    return alexnet.train(data, out=folder, settings={**length, "train.seed": seed, **parse_settings(settings)})


def scores(run: alexnet.Run, evaluation: Evaluation) -> dict[str, NDArray[np.float64]]:
    """Return the run's score of each image, and its calibrated maximum."""
    assert evaluation.margins is not None
    return {"ours": evaluation.margins.astype(np.float64), "maximum": evaluation.probabilities.max(1)}


def compare(run: alexnet.Run, unknown: dict[str, list[Path]], out: Path) -> Iterator[tuple[str, str, float, float, float]]:
    """Yield for each kind of other images and each score its AUROC, false alarms and misses."""
    validation, test = (scores(run, run.evaluate(split=split)) for split in ("val", "test"))
    for kind, paths in unknown.items():
        chosen = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))[:MOST]]
        listing = write(out / "unknown.csv", ((path, run.labels[0], "") for path in chosen))
        for name, found in scores(run, run.evaluate(listing)).items():
            threshold = np.quantile(validation[name], 1 - PASSED, method="lower") if name == "maximum" else 0.0
            truth = np.repeat([1, 0], [len(test[name]), len(found)])
            auroc = float(roc_auc_score(truth, np.concatenate([test[name], found])))
            yield kind, name, auroc, float((test[name] < threshold).mean()), float((found >= threshold).mean())


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--set", nargs="*", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    accuracy: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name, data, unknown in tasks(Path(os.environ["ALEXNET_TEST_DATA"]), options.out):
            run = trained(options.out / f"{name}-{seed}", data, seed, options.minutes, options.set)
            accuracy.setdefault(name, []).append(run.summary["test"]["top1"])
            for kind, score, *figures in compare(run, unknown, options.out):
                found.setdefault((name, kind, score), []).append((figures[0], figures[1], figures[2]))
    print("| trained on | other images | score | AUROC | false alarms | misses |\n|---|---|---|---|---|---|")
    for (name, kind, score), figures in found.items():
        cells = [f"{np.mean(column):.1%} ({min(column):.1%} to {max(column):.1%})" for column in zip(*figures, strict=True)]
        print(f"| {name} (top-1 {np.mean(accuracy[name]):.1%}) | {kind} | {score} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
