"""Damage images at random and read them: each must be decoded or reported, within time and memory limits, without a crash.

    python -m proof.fuzz [--images 20000] [--seed N]

Bits are flipped, ends cut off and pieces of other files inserted, in JPEG (baseline and progressive), PNG, GIF, BMP, TIFF,
WebP and, with pillow-heif, HEIC (one image, or a grid of tiles); every file goes through decoding, `data check` and `predict`.
Prints a table; the exit code is 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from proof.pictures import encoded, heic
from proof.processes import memory, watched_memory

import alexnet
from alexnet.data.check import check
from alexnet.data.decode_pool import decode_all
from alexnet.data.sources import open_table
from alexnet.errors import ImageError

FORMATS = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "PNG": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {},
}
if find_spec("pillow_heif"):
    FORMATS |= {"HEIC": {"quality": 70}, "HEIC grid": {"quality": 70, "tile_size": 64}}
CHANGES = ("flip", "cut", "splice")
AT_ONCE = 2000  # files on the disk
SECONDS = 5.0  # maximum CPU time per image, in seconds
MEMORY = 1 << 30  # bytes above the idle level
NARROW = {"model.width": 1 / 16, "images.input": 67, "train.batch_size": 16, "train.epochs": 1}


def seeds(chance: np.random.Generator) -> dict[str, list[bytes]]:
    """Return files to start from, by format: noisy shapes, and photos if ALEXNET_TEST_DATA is set."""
    pictures = []
    for kind in range(4):
        size = (int(chance.integers(20, 90)), int(chance.integers(20, 90)))
        levels = np.indices(size).sum(0)[..., None] * np.array([3, 5, 7]) % 256 * (kind + 1) // 4
        pictures.append(Image.fromarray((levels + chance.integers(0, 60, (*size, 3))).clip(0, 255).astype(np.uint8)))
    pictures += [pictures[0].convert(mode) for mode in ("L", "P", "1")]
    if folder := os.environ.get("ALEXNET_TEST_DATA"):
        pictures += [Image.open(path).convert("RGB") for path in sorted(Path(folder, "imagenette").rglob("*.JPEG"))[:3]]

    def packed(picture: Image.Image, name: str) -> bytes:
        picture = picture.convert("RGB") if picture.mode in ("P", "1") and name.startswith(("JPEG", "WEBP")) else picture
        if name.startswith("HEIC"):
            return heic(picture.convert("RGB"), **FORMATS[name])
        return encoded(picture, name.split()[0], **FORMATS[name])

    return {name: [packed(picture, name) for picture in pictures] for name in FORMATS}


def damaged(content: bytes, other: bytes, change: str, chance: np.random.Generator) -> bytes:
    """Return the file with bits flipped, its end cut off, or a piece of another file inserted."""
    array = bytearray(content)
    at = int(len(array) * chance.random() ** 2)  # headers decide the most
    if change == "cut":
        return bytes(array[:at])
    if change == "flip":
        for _ in range(int(chance.integers(1, 12))):
            array[int(len(array) * chance.random() ** 2)] ^= 1 << int(chance.integers(8))
        return bytes(array)
    start, length = int(chance.integers(len(other))), int(chance.integers(1, 400))
    array[at : at + int(chance.integers(400))] = other[start : start + length]
    return bytes(array)


def made(i: int, started: dict[str, list[bytes]], chance: np.random.Generator) -> tuple[str, str, bytes]:
    """Return the format of file number `i`, the change made to it, and its bytes; formats and changes alternate."""
    names = list(started)
    name, change = names[i % len(names)], CHANGES[i // len(names) % len(CHANGES)]
    other = started[names[int(chance.integers(len(names)))]]
    return name, change, damaged(started[name][int(chance.integers(len(started[name])))], other[0], change, chance)


def fuzz(folder: Path, count: int, seed: int, run: alexnet.Run) -> tuple[Counter[tuple[str, str, str]], list[str]]:
    """Read `count` damaged files in every way; return the counts by format, change and outcome, and the problems found."""
    counts: Counter[tuple[str, str, str]] = Counter()
    faults: list[str] = []
    chance = np.random.default_rng(seed)
    started, written = seeds(chance), dict[Path, tuple[str, str, bytes]]()
    for i in range(count):
        name, change, content = made(i, started, chance)
        path = folder / ("even", "odd")[i % 2] / f"{i:06}.{name.split()[0].lower()}"  # class folders
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written[path] = name, change, content
    paths = list(written)
    settings = {"cache_size": 64, "fit": "crop", "filter": "bicubic", "reduced_decode": True}
    outcomes = {}
    for path, answer in decode_all("pixels", paths, 2, 64, **settings):
        name, change, _ = written[path]
        outcomes[path] = answer.kind if isinstance(answer, ImageError) else "decoded"
        counts[name, change, outcomes[path]] += 1
        if isinstance(answer, ImageError) and "crashed" in str(answer):
            faults.append(f"{path.name}: {answer}")
    problems = {problem.image: problem for problem in check(open_table(folder)).problems}
    for path, answer in zip(paths, run.stream(paths), strict=True):
        image, found = path.relative_to(folder).as_posix(), "error" not in answer
        if found != (outcomes[path] == "decoded"):
            faults.append(f"{image}: {outcomes[path]} when decoded, but predict says {answer}")
        if outcomes[path] != "decoded" and image not in problems:
            faults.append(f"{image}: {outcomes[path]} when decoded, but data check has nothing about it")
    faults += [f"{path.name}: changed" for path, (_, _, content) in written.items() if path.read_bytes() != content]
    return counts, faults


def trained(folder: Path) -> alexnet.Run:
    """Return a run of a narrow network to predict with."""
    return alexnet.train("digits", out=folder / "run", settings=NARROW)


def main() -> int:
    """Damage and read the requested number of images, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Read damaged images; see the file's head.")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    counts: Counter[tuple[str, str, str]] = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        run = trained(Path(name))
        fuzz(Path(name) / "warm", 42, 0, run)
        rest = memory(os.getpid())
        with watched_memory(os.getpid(), 0.02) as samples:
            for part, start in enumerate(range(0, options.images, AT_ONCE)):
                with tempfile.TemporaryDirectory() as inner:
                    found, wrong = fuzz(Path(inner), min(AT_ONCE, options.images - start), options.seed + part, run)
                counts += found
                faults += wrong
                print(f"{counts.total():,} images, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        used = max(taken for _, taken in samples) - rest
    kinds = sorted({kind for _, _, kind in counts})
    print(f"{'':18}{'':8}" + "".join(f"{kind:>14}" for kind in kinds))
    for name in FORMATS:
        for change in CHANGES:
            print(f"{name:18}{change:8}" + "".join(f"{counts[name, change, kind]:14,}" for kind in kinds))
    print(f"{counts.total():,} images in {time.monotonic() - began:.0f} s, {used / 1e6:.0f} MB above rest")
    if used > MEMORY:
        faults.append(f"{used / 1e6:.0f} MB above rest are more than {MEMORY / 1e6:.0f}")
    print("\n".join(faults[:50]) or "every one was decoded or reported, and none was changed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
