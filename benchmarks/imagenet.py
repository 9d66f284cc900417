"""Listing a dataset of ImageNet's size, as class folders, as Kaggle's folders and as the official archives, and the first step.

`python -m benchmarks.imagenet FOLDER [IMAGES]` makes 1,281,167 training and 50,000 validation images of 32x32 pixels in FOLDER,
unless they are there (5 GB, ten minutes), or IMAGES in all. Each way is a process of its own, which prints its seconds and the
most memory that it took. The peer lists the class folders as torchvision's `ImageFolder` does: `os.walk`, sorted, in a list.
`first step` is a training on Kaggle's folders without a cache, from its start to its first step; `first step, cache` builds the
cache before, or opens it if it is there.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
from benchmarks.turns import in_turn, spread
from PIL import Image

import alexnet
from alexnet.data.imagenet import imagenet_classes
from alexnet.data.sources import open_table
from alexnet.data.splits import split
from alexnet.errors import AlexNetError
from alexnet.recipe import Data
from alexnet.training.trainer import Trainer

TRAIN, VAL = 1_281_167, 50_000
ROUNDS = 3
FIRST_STEPS = {"first step": "none", "first step, cache": "disk"}


def jpeg(i: int) -> bytes:
    """A picture of one colour, different for each of 4,096 numbers."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (i % 16 * 16, i // 16 % 16 * 16, i // 256 % 16 * 16)).save(file, "JPEG")
    return file.getvalue()


PICTURES = [jpeg(i) for i in range(4096)]


def images(count: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield the class, the name and the content of each training image, class by class."""
    wnids = list(imagenet_classes())
    for c, wnid in enumerate(wnids):
        for i in range(count * c // len(wnids), count * (c + 1) // len(wnids)):
            yield wnid, f"{wnid}_{i}.JPEG", PICTURES[i % 4096]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def make(folder: Path, train: int, val: int) -> None:
    """Write the dataset in each layout; the folders of Kaggle's are links to the others."""
    wnids, numbers = list(imagenet_classes()), np.random.default_rng(0).permutation(np.arange(val) % 1000).tolist()
    names = [f"ILSVRC2012_val_{i:08}" for i in range(1, val + 1)]
    for wnid in wnids:
        for place in ("classes/train", "classes/val"):
            (folder / place / wnid).mkdir(parents=True, exist_ok=True)
    for wnid, name, content in images(train):
        (folder / "classes/train" / wnid / name).write_bytes(content)
    flat = folder / "kaggle/ILSVRC/Data/CLS-LOC"
    (flat / "val").mkdir(parents=True)
    (flat / "train").symlink_to(folder.absolute() / "classes/train")
    for i, (name, number) in enumerate(zip(names, numbers, strict=True)):
        (flat / "val" / f"{name}.JPEG").write_bytes(PICTURES[i % 4096])
        os.link(flat / "val" / f"{name}.JPEG", folder / "classes/val" / wnids[number] / f"{name}.JPEG")
    rows = [f"{name},{wnids[number]} 1 2 3 4" for name, number in zip(names, numbers, strict=True)]
    solution = "\n".join(["ImageId,PredictionString", *rows]) + "\n"
    (folder / "archives").mkdir()
    for place in ("kaggle", "archives"):
        (folder / place / "LOC_val_solution.csv").write_text(solution)
    with tarfile.open(folder / "archives/ILSVRC2012_img_val.tar", "w") as archive:
        for i, name in enumerate(names):
            add(archive, f"{name}.JPEG", PICTURES[i % 4096])
    with tarfile.open(folder / "archives/ILSVRC2012_img_train.tar", "w") as archive:
        for wnid, files in groupby(images(train), lambda image: image[0]):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as part:
                for _, name, content in files:
                    add(part, name, content)
            add(archive, f"{wnid}.tar", inner.getvalue())
    (folder / "complete").touch()


def walk(folder: Path) -> int:
    """List the class folders as torchvision's ImageFolder does."""
    found: list[tuple[str, int]] = []
    for part in ("train", "val"):
        classes = sorted(entry.name for entry in os.scandir(folder / part) if entry.is_dir())
        for number, name in enumerate(classes):
            for root, _, files in sorted(os.walk(folder / part / name, followlinks=True)):
                found += [(os.path.join(root, file), number) for file in sorted(files) if file.lower().endswith(".jpeg")]
    return len(found)


def first_step(folder: Path, cache: str) -> int:
    """Train until the first step; return the number of training images."""
    counts: list[int] = []

    def stop(trainer: Trainer, *_: object) -> None:
        counts.append(len(trainer.dataset.table))
        raise AlexNetError("this is the first step")

    Trainer.train_step = stop  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out, suppress(AlexNetError):
        alexnet.train(folder / "kaggle", out=Path(out) / "run", settings={"data.cache": cache})
    return counts[0]


def one(folder: Path, way: str) -> None:
    """List the dataset in one way, and print what it took."""
    start = time.perf_counter()
    if way in FIRST_STEPS:
        count = first_step(folder, FIRST_STEPS[way])
    else:
        count = walk(folder / "classes") if way == "os.walk" else len(split(open_table(folder / way), Data()))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": time.perf_counter() - start, "memory": memory, "images": count}))


def main(folder: Path, count: int) -> None:
    """Measure all ways in turn."""
    if not (folder / "complete").exists():
        make(folder, count * TRAIN // (TRAIN + VAL), count * VAL // (TRAIN + VAL))
    memory, found = dict[str, float](), dict[str, int]()

    def measured(way: str) -> float:
        command = [sys.executable, "-m", "benchmarks.imagenet", str(folder), "--way", way]
        answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        memory[way], found[way] = answer["memory"], answer["images"]
        return float(answer["seconds"])

    ways = ("os.walk", "classes", "kaggle", "archives", *FIRST_STEPS)
    times = in_turn({way: lambda way=way: measured(way) for way in ways}, ROUNDS, warm_up=0)
    for way, taken in times.items():
        print(f"{way:17} {found[way]:,} images in {spread(taken, '.1f')} s, {memory[way]:.2f} GB at most")
    print(json.dumps({"benchmark": "imagenet", "seconds": {way: min(taken) for way, taken in times.items()}, "memory": memory}))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if "--way" in sys.argv:
        one(place, sys.argv[-1])
    else:
        main(place, int(sys.argv[2]) if len(sys.argv) > 2 else TRAIN + VAL)
