"""Decode once: the images of a dataset as one memory-mapped array of bytes.

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
from pathlib import Path

import numpy as np
import PIL
import pooch
from numpy.typing import NDArray

from alexnet.data.images import Preprocessing, pixels
from alexnet.data.table import Skipped, Table
from alexnet.errors import DataError, ImageError
from alexnet.progress import track

CHUNK = 1024  # images in flight at once, so that memory stays bounded


@dataclass(frozen=True, eq=False)
class Cache:
    """`pixels` are N S S 3 uint8, memory-mapped, for `rows` of the table; the other rows are `skipped`."""

    pixels: NDArray[np.uint8]
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
    settings = how.model_dump_json(include={"stored", "fit", "reduced_decode"})
    place = str(table.root or "memory")
    folder = cache_folder() / f"{table.name}-{_digest(place, table.name, settings)[:12]}"
    key = _key(table, settings)
    index, data = folder / f"{key}.json", folder / f"{key}.u8"
    try:
        if not index.exists():
            _make(table, how, workers, index, data)
        found = json.loads(index.read_text(encoding="utf-8"))
        shape = (len(found["rows"]), how.stored, how.stored, 3)
        if not found["rows"]:
            first = Skipped(*found["skipped"][0]) if found["skipped"] else Skipped("", "there are none")
            raise DataError(f"{table.name} has no readable image; the first, {first.image}: {first.reason}")
        memory = np.memmap(data, dtype=np.uint8, mode="r", shape=shape)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot keep decoded images in {folder}: {getattr(error, 'strerror', None) or error}; "
            "make room there, or name another folder in the environment variable ALEXNET_CACHE"
        ) from error
    return Cache(memory, np.array(found["rows"], dtype=np.int64), tuple(Skipped(*s) for s in found["skipped"]))


def _make(table: Table, how: Preprocessing, workers: int, index: Path, data: Path) -> None:
    index.parent.mkdir(parents=True, exist_ok=True)
    needed, free = len(table) * how.stored**2 * 3, shutil.disk_usage(index.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    rows: list[int] = []
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
                    file.write(image)
        part.replace(data)
    finally:
        part.unlink(missing_ok=True)
    listing = index.with_suffix(f".{os.getpid()}.part")
    listing.write_text(json.dumps({"rows": rows, "skipped": skipped}), encoding="utf-8")
    listing.replace(index)
    _remove_others(index)


def _decode_all(table: Table, how: Preprocessing, workers: int) -> Iterator[bytes | str]:
    """Yield the bytes of each image in order, or the reason why there are none."""

    def one(row: int) -> bytes | str:
        try:
            return pixels(table.source(row), how).tobytes()
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:  # threads, as Pillow lets go of the interpreter while it decodes
        for start in range(0, len(table), CHUNK):
            yield from pool.map(one, range(start, min(start + CHUNK, len(table))))


def _key(table: Table, settings: str) -> str:
    digest = hashlib.sha256(f"1 {PIL.__version__} {settings}\n".encode())
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
