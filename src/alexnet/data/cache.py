"""Decode once: the images of a dataset as one memory-mapped run of bytes.

A cache lies in a folder named for the dataset's place and the preprocessing, in files named for a key of all that decides
its content: each image's name, size and time of change, the preprocessing, Pillow's version. A file that was changed, added or
removed makes another key, so the cache is made anew, and the old one is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
import pooch
from numpy.typing import NDArray

from alexnet.data.images import PixelArray, Preprocessing, fitted, stored_pixels
from alexnet.data.table import Skipped, Table
from alexnet.errors import DataError, ImageError
from alexnet.progress import track

CHUNK = 64  # images in flight at once, so that memory stays bounded


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images, uint8, one after the other in `memory`; `shapes` has height and width of each (N x 2 int64)."""

    memory: NDArray[np.uint8]
    shapes: NDArray[np.int64]
    how: Preprocessing

    def __len__(self) -> int:
        return len(self.shapes)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each image begins in `memory`, and where the last one ends."""
        return np.concatenate([[0], np.cumsum(self.shapes.prod(1) * 3)])

    def stored(self, row: int) -> NDArray[np.uint8]:
        """Return an image as it is stored: H W 3."""
        image: NDArray[np.uint8] = self.memory[self.starts[row] : self.starts[row + 1]].reshape(*self.shapes[row], 3)
        return image

    def take(self, rows: NDArray[np.int64]) -> PixelArray:
        """Return images as batches hold them: N S S 3 (S = `how.side`), uint8, or float32 where full images are resized."""
        if self.how.stored == "full":
            full: NDArray[np.float32] = np.stack([fitted(self.stored(row), self.how) for row in rows])
            return full
        side = self.how.stored
        images: NDArray[np.uint8] = self.memory.reshape(-1, side, side, 3)[rows]
        return images


@dataclass(frozen=True, eq=False)
class Cache:
    """`pixels` are those of `rows` of the table; the other rows are `skipped`."""

    pixels: Pixels
    rows: NDArray[np.int64]
    skipped: tuple[Skipped, ...]


def cache_folder() -> Path:
    """Return the folder of all caches: ALEXNET_CACHE, else the system's folder for caches."""
    return Path(os.environ.get("ALEXNET_CACHE") or Path(pooch.os_cache("alexnet")) / "images").expanduser()


def open_cache(table: Table, how: Preprocessing, workers: int) -> Cache:
    """Return the cache of `table`, made first where there is none; `workers` threads decode.

    Raises:
        DataError: no image is readable, or the disk is full or not writable.
    """
    settings = how.model_dump_json(include={"stored", "fit", "filter", "reduced_decode"})
    place = str(table.root or "memory")
    folder = cache_folder() / f"{table.name}-{_digest(place, table.name, settings)[:12]}"
    key = _key(table, settings)
    index, data = folder / f"{key}.json", folder / f"{key}.u8"
    try:
        if not (index.exists() and data.exists()):
            _make(table, how, workers, index, data)
        found = json.loads(index.read_text(encoding="utf-8"))
        shapes = np.array(found["shapes"], dtype=np.int64).reshape(-1, 2)
        if not found["rows"]:
            first = Skipped(*found["skipped"][0]) if found["skipped"] else Skipped("", "there are none")
            raise DataError(f"{table.name} has no readable image; the first, {first.image}: {first.reason}")
        memory = np.memmap(data, dtype=np.uint8, mode="r", shape=(int(shapes.prod(1).sum()) * 3,))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot keep decoded images in {folder}: {getattr(error, 'strerror', None) or error}; "
            "make room there, or name another folder in the environment variable ALEXNET_CACHE"
        ) from error
    rows, skipped = np.array(found["rows"], dtype=np.int64), tuple(Skipped(*s) for s in found["skipped"])
    return Cache(Pixels(memory, shapes, how), rows, skipped)


def _make(table: Table, how: Preprocessing, workers: int, index: Path, data: Path) -> None:
    index.parent.mkdir(parents=True, exist_ok=True)
    needed = 0 if how.stored == "full" else len(table) * how.stored**2 * 3  # full sizes show as they are decoded
    free = shutil.disk_usage(index.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    rows: list[int] = []
    shapes: list[tuple[int, ...]] = []
    skipped: list[Skipped] = []
    part = data.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            decoded = track(_decode_all(table, how, workers), f"Decoding {table.name}", len(table))
            for row, image in enumerate(decoded):
                if isinstance(image, str):
                    skipped.append(Skipped(table.images[row], image))
                else:
                    rows.append(row)
                    shapes.append(image.shape[:2])
                    file.write(np.ascontiguousarray(image).data)
        part.replace(data)
    finally:
        part.unlink(missing_ok=True)
    listing = index.with_suffix(f".{os.getpid()}.part")
    listing.write_text(json.dumps({"rows": rows, "shapes": shapes, "skipped": skipped}), encoding="utf-8")
    listing.replace(index)
    _remove_others(index)


def _decode_all(table: Table, how: Preprocessing, workers: int) -> Iterator[NDArray[np.uint8] | str]:
    """Yield each image in order, or the reason why there is none."""

    def one(row: int) -> NDArray[np.uint8] | str:
        try:
            return stored_pixels(table.source(row), how)
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:  # threads, as Pillow lets go of the interpreter while it decodes
        for start in range(0, len(table), CHUNK):
            yield from pool.map(one, range(start, min(start + CHUNK, len(table))))


def _key(table: Table, settings: str) -> str:
    digest = hashlib.sha256(f"2 {PIL.__version__} {settings}\n".encode())
    if table.pixels is not None:
        digest.update(repr(table.pixels.shape).encode())
        digest.update(np.ascontiguousarray(table.pixels).data)
        return digest.hexdigest()[:20]
    for row, name in enumerate(table.images):
        source = table.source(row)
        assert isinstance(source, Path)
        try:
            stat = source.stat()
            fact = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        except OSError:
            fact = f"{name}\0missing\n"
        digest.update(fact.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:20]


def _remove_others(index: Path) -> None:
    """Remove older caches of this folder, and what a run that was killed has left; another run may be writing now."""
    for file in index.parent.iterdir():
        fresh_part = file.suffix == ".part" and time.time() - file.stat().st_mtime < 24 * 3600
        if not file.name.startswith(index.stem) and not fresh_part:
            file.unlink(missing_ok=True)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
