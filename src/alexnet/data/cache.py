"""Cache of decoded images: one memory-mapped file per dataset and preprocessing, and one of thumbnails.

The folder of a cache is named by a hash of the dataset's path and the preprocessing, its files by a key: a hash of each image's
name, size and modification time, the preprocessing and Pillow's version. A file that is changed, added or removed changes the
key; the cache is then rebuilt, from the old one where images are the same, and the old one is removed.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from numpy.typing import NDArray

from alexnet.data.decode_pool import Answer, decode_all
from alexnet.data.decode_worker import THUMBNAIL
from alexnet.data.on_demand import OnDemand, decode_on_demand
from alexnet.data.preprocessing import PixelArray, fit_image
from alexnet.data.table import Skipped, Table
from alexnet.errors import DataError, ImageError, RunError, error_reason, truncate
from alexnet.files import expand_user, remove_leftovers, rename, temporary_name, user_cache, write, write_text
from alexnet.progress import say, track
from alexnet.recipe import Preprocessing

IN_FLIGHT = 64_000_000  # approximate bytes of images decoded ahead
CHUNK = 1 << 24  # bytes to read at a time
Where = Literal["auto", "disk", "none"]  # to keep decoded images


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images, uint8, stored contiguously in `memory`; `shapes` holds their heights and widths, N x 2 int64."""

    memory: NDArray[np.uint8]
    shapes: NDArray[np.int64]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.shapes)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The offset of each image in `memory`, and the end of the last."""
        return np.concatenate([[0], np.cumsum(self.shapes.prod(1) * 3)])

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return one image, H W 3."""
        return self.memory[self.starts[row] : self.starts[row + 1]].reshape(*self.shapes[row], 3)

    def take(self, rows: NDArray[np.int64]) -> PixelArray:
        """Return images for a batch: N S S 3, S = `side`, uint8, or float32 if full images are resized."""
        if self.preprocessing.cache_size == "full":
            return np.stack([fit_image(self.image(row), self.preprocessing) for row in rows], dtype=np.float32)
        side = self.preprocessing.side
        return self.memory.reshape(-1, side, side, 3)[rows]


@dataclass(frozen=True, eq=False)
class Cache:
    """The `pixels` of the readable `rows` of a table, and their SHA-256; the other rows are `skipped`.

    `prints` are the fingerprints of the rows' files, and `thumbnails` N x 768 uint8, to find near-duplicates by; images in
    memory, or decoded on demand, have neither.
    """

    pixels: Pixels | OnDemand
    rows: NDArray[np.int64]
    skipped: tuple[Skipped, ...]
    sha256: str
    prints: tuple[str, ...]
    thumbnails: NDArray[np.uint8]


def cache_folder() -> Path:
    """Return the folder of all caches: ALEXNET_CACHE, else the system's folder for caches."""
    return expand_user(os.environ.get("ALEXNET_CACHE") or user_cache() / "images")


class DiskFull(OSError):
    """The decoded images do not fit onto the disk."""


def open_cache(table: Table, preprocessing: Preprocessing, workers: int, where: Where = "disk") -> Cache:
    """Open the cache of `table`, or build it with `workers` processes.

    With `where` = `none`, images are decoded whenever they are taken; with `auto`, if they do not fit onto the disk.
    """
    settings = preprocessing.model_dump_json(include={"cache_size", "fit", "filter", "reduced_decode"})
    name = "\0".join([str(table.root or "memory"), table.name, settings]).encode("utf-8", "surrogateescape")
    folder = cache_folder() / f"{table.name}-{hashlib.sha256(name).hexdigest()[:12]}"
    prints = fingerprints(table, settings)
    if where == "none":
        return _on_demand(table, preprocessing, prints)
    index = folder / f"{_key(table, settings, prints)}.json"
    data = index.with_suffix(".u8")
    try:
        if (result := _read(table.name, preprocessing, index, len(table))) is None:
            _build(table, preprocessing, workers, index, prints)
            result = _read(table.name, preprocessing, index, len(table))
        _remove_others(index)
        if result is None:
            raise OSError(f"{data.name} differs from what was written")
    except (OSError, RunError) as error:
        if where == "auto" and isinstance(error, DiskFull):
            say(f"{table.name}: images are decoded again in each epoch, as {error} in {folder}")
            return _on_demand(table, preprocessing, prints)
        advice = "free some space there, or set the environment variable ALEXNET_CACHE to another folder"
        raise DataError(f"cannot cache decoded images in {folder}: {error_reason(error)}; {advice}") from error
    if not len(result.rows):
        first = result.skipped[0] if result.skipped else Skipped("", "it has no images")
        raise DataError(f"{table.name} has no readable image; the first, {truncate(first.image)}: {first.reason}")
    return result


def _on_demand(table: Table, preprocessing: Preprocessing, prints: Sequence[str]) -> Cache:
    pixels, sha256 = decode_on_demand(table, preprocessing, prints)
    return Cache(pixels, np.arange(len(table)), (), sha256, (), np.empty((0, 3 * THUMBNAIL**2), np.uint8))


def _read(name: str, preprocessing: Preprocessing, index: Path, images: int) -> Cache | None:
    """Return the cache of a table of `images` if its checksum is correct; None if there is none, so that it must be built."""
    data, small = index.with_suffix(".u8"), index.with_suffix(".thumbnails")
    if not (index.exists() and data.exists() and small.exists()):
        return None
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        rows = np.array(content["rows"], dtype=np.int64)
        shapes = np.array(content["shapes"], dtype=np.int64).reshape(-1, 2)
        skipped = tuple(Skipped(str(image), str(reason)) for image, reason in content["skipped"])
        sha256, prints = content["sha256"], tuple(map(str, content["prints"]))
        thumbnails = np.frombuffer(small.read_bytes(), dtype=np.uint8).reshape(len(prints), 3 * THUMBNAIL**2)
        if hashlib.sha256(thumbnails.data).hexdigest() != content["thumbnails"]:
            return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    size = sum(height * width * 3 for height, width in shapes.tolist())
    in_order = len(rows) == len(shapes) and (np.diff(rows, prepend=-1) > 0).all() and (rows < images).all()
    if not in_order or len(prints) not in (0, len(rows)) or (shapes < 1).any() or size != data.stat().st_size:
        return None
    if preprocessing.cache_size != "full" and (shapes != preprocessing.cache_size).any():
        return None
    digest = hashlib.sha256()
    with data.open("rb") as file:
        chunks = iter(lambda: file.read(CHUNK), b"")
        for chunk in track(chunks, f"Checking {name}", -(-size // CHUNK)):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        return None
    memory = np.memmap(data, dtype=np.uint8, mode="r") if size else np.empty(0, dtype=np.uint8)
    return Cache(Pixels(memory, shapes, preprocessing), rows, skipped, sha256, prints, thumbnails)


def _build(table: Table, preprocessing: Preprocessing, workers: int, index: Path, prints: Sequence[str]) -> None:
    index.parent.mkdir(parents=True, exist_ok=True)
    data, known = index.with_suffix(".u8"), _decoded(table.name, preprocessing, index.parent)
    ahead, pixels = min(256, IN_FLIGHT // (preprocessing.side**2 * 3)), float(preprocessing.side**2)
    if preprocessing.cache_size == "full":
        ahead = 0
        pixels = float(np.mean([width * height for width, height in header_sizes(table, workers)] or [0]))  # an estimate
    needed, free = len(table) * round(3 * pixels), shutil.disk_usage(index.parent).free
    if needed > free:
        raise DiskFull(f"{needed / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free")
    rows: list[int] = []
    shapes: list[tuple[int, ...]] = []
    skipped: list[Skipped] = []
    thumbnails: list[NDArray[np.uint8]] = []
    digest = hashlib.sha256()
    part = temporary_name(data)
    new = (table.source(row) for row in range(len(table)) if not (prints and prints[row] in known))
    work = "cached" if prints else "pixels"
    answers = decode_all(work, new, workers, ahead, **preprocessing.decode_options())
    try:
        with part.open("wb") as file:
            for row in track(range(len(table)), f"Decoding {table.name}", len(table)):
                if prints and prints[row] in known:
                    image, thumbnail = known[prints[row]]
                else:
                    _, answer = next(answers)
                    if isinstance(answer, ImageError):
                        skipped.append(Skipped(table.images[row], str(answer)))
                        continue
                    image, thumbnail = answer.pixels, answer.thumbnail
                thumbnails += [thumbnail] if prints else []
                rows.append(row)
                shapes.append(image.shape[:2])
                file.write(image.data)
                digest.update(image.data)
            file.flush()
            os.fsync(file.fileno())
        rename(part, data)
    finally:
        part.unlink(missing_ok=True)
    small = b"".join(thumbnail.tobytes() for thumbnail in thumbnails)
    write(index.with_suffix(".thumbnails"), lambda part: part.write_bytes(small))
    content = {"rows": rows, "shapes": shapes, "skipped": skipped, "prints": [prints[row] for row in rows] if prints else []}
    digests = {"sha256": digest.hexdigest(), "thumbnails": hashlib.sha256(small).hexdigest()}
    write_text(index, json.dumps(content | digests))


def _decoded(name: str, preprocessing: Preprocessing, folder: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Return the images of earlier caches in a folder, H W 3, and their thumbnails, by their fingerprints."""
    result: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
    for index in folder.glob("*.json"):
        if (cache := _read(name, preprocessing, index, sys.maxsize)) is not None:
            result |= {text: (cache.pixels.image(row), cache.thumbnails[row]) for row, text in enumerate(cache.prints)}
    return result


def header_sizes(table: Table, workers: int) -> list[tuple[int, int]]:
    """Return the width and height of about 200 of a table's images, from their headers."""
    sample = table.sources(max(1, len(table) // 200))
    return [tuple(answer.facts["size"]) for _, answer in decode_all("size", sample, workers) if isinstance(answer, Answer)]


def fingerprints(table: Table, settings: str) -> list[str]:
    """Return a hash of each image's name, size and modification time, of `settings` and Pillow's version; none if in memory."""
    result = []
    for row, name in enumerate(table.images if table.pixels is None else ()):
        try:
            fact = f"{name}\0{table.fact(row)}\n"
        except OSError:
            fact = f"{name}\0missing\n"
        text = f"{PIL.__version__} {settings}\n{fact}"
        result.append(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20])
    return result


def _key(table: Table, settings: str, prints: Sequence[str]) -> str:
    digest = hashlib.sha256(f"5 {PIL.__version__} {settings}\n".encode())
    if table.pixels is not None:
        digest.update(repr(table.pixels.shape).encode())
        digest.update(np.ascontiguousarray(table.pixels).data)
    digest.update("".join(prints).encode())
    return digest.hexdigest()[:20]


def _remove_others(index: Path) -> None:
    """Remove older caches in this folder, and temporary files of killed processes."""
    remove_leftovers(index.parent)
    for file in index.parent.iterdir():
        if file.suffix != ".part" and not file.name.startswith(index.stem):
            with suppress(PermissionError):  # another user's file, or one that another process maps on Windows
                file.unlink(missing_ok=True)
