"""Cache of decoded images: one memory-mapped file per dataset and preprocessing.

The folder of a cache is named by a hash of the dataset's path and the preprocessing, its files by a key: a hash of each image's
name, size and modification time, the preprocessing and Pillow's version. A file that is changed, added or removed changes the
key; the cache is then rebuilt and the old one removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from pydantic import TypeAdapter

from alexnet.data.decode_pool import Answer, decode_all
from alexnet.data.preprocessing import PixelArray, fit_image
from alexnet.data.table import Skipped, Table
from alexnet.errors import DataError, ImageError, error_reason, truncate
from alexnet.files import expand_user, remove_leftovers, rename, temporary_name, user_cache
from alexnet.progress import track
from alexnet.recipe import Preprocessing

IN_FLIGHT = 64_000_000  # approximate bytes of images decoded ahead
CHUNK = 1 << 24  # bytes to read at a time


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images, uint8, one after the other in `memory`; `shapes` holds their heights and widths, N x 2 int64."""

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
        image: NDArray[np.uint8] = self.memory[self.starts[row] : self.starts[row + 1]].reshape(*self.shapes[row], 3)
        return image

    def take(self, rows: NDArray[np.int64]) -> PixelArray:
        """Return images for a batch: N S S 3, S = `side`, uint8, or float32 if full images are resized."""
        if self.preprocessing.cache_size == "full":
            full: NDArray[np.float32] = np.stack([fit_image(self.image(row), self.preprocessing) for row in rows])
            return full
        side = self.preprocessing.side
        images: NDArray[np.uint8] = self.memory.reshape(-1, side, side, 3)[rows]
        return images


@dataclass(frozen=True, eq=False)
class Cache:
    """The `pixels` of the readable `rows` of a table, and their SHA-256; the other rows are `skipped`."""

    pixels: Pixels
    rows: NDArray[np.int64]
    skipped: tuple[Skipped, ...]
    sha256: str


@dataclass(frozen=True)
class CacheIndex:
    """The JSON file beside the pixels: the fields of `Cache`, and the height and width of each image."""

    rows: list[int]
    shapes: list[tuple[int, int]]
    skipped: list[Skipped]
    sha256: str


def cache_folder() -> Path:
    """Return the folder of all caches: ALEXNET_CACHE, else the system's folder for caches."""
    return expand_user(os.environ.get("ALEXNET_CACHE") or user_cache() / "images")


def open_cache(table: Table, preprocessing: Preprocessing, workers: int) -> Cache:
    """Open the cache of `table`, or build it with `workers` processes."""
    settings = preprocessing.model_dump_json(include={"cache_size", "fit", "filter", "reduced_decode"})
    path = str(table.root or "memory")
    folder = cache_folder() / f"{table.name}-{_digest(path, table.name, settings)[:12]}"
    key = _key(table, settings)
    index, data = folder / f"{key}.json", folder / f"{key}.u8"
    try:
        if (result := _read(table, preprocessing, index, data)) is None:
            _build(table, preprocessing, workers, index, data)
            result = _read(table, preprocessing, index, data)
        _remove_others(index)
        if result is None:
            raise OSError(f"{data.name} differs from what was written")
    except OSError as error:
        raise DataError(
            f"cannot cache decoded images in {folder}: {error_reason(error)}; "
            "free some space there, or set the environment variable ALEXNET_CACHE to another folder"
        ) from error
    if not len(result.rows):
        first = result.skipped[0] if result.skipped else Skipped("", "it has no images")
        raise DataError(f"{table.name} has no readable image; the first, {truncate(first.image)}: {first.reason}")
    return result


def _read(table: Table, preprocessing: Preprocessing, index: Path, data: Path) -> Cache | None:
    """Return a cache whose checksum is right; None if there is none, so that it must be built."""
    if not (index.exists() and data.exists()):
        return None
    try:
        content = TypeAdapter(CacheIndex).validate_python(json.loads(index.read_text(encoding="utf-8")))
        rows = np.array(content.rows, dtype=np.int64)
        shapes = np.array(content.shapes, dtype=np.int64).reshape(-1, 2)
    except (ValueError, OverflowError, RecursionError):
        return None
    size = sum(height * width * 3 for height, width in content.shapes)
    in_order = len(rows) == len(shapes) and (np.diff(rows, prepend=-1) > 0).all() and (rows < len(table)).all()
    if not in_order or (shapes < 1).any() or size != data.stat().st_size:
        return None
    if preprocessing.cache_size != "full" and (shapes != preprocessing.cache_size).any():
        return None
    if _file_digest(data, f"Checking {table.name}") != content.sha256:
        return None
    memory = np.memmap(data, dtype=np.uint8, mode="r") if size else np.empty(0, dtype=np.uint8)
    return Cache(Pixels(memory, shapes, preprocessing), rows, tuple(content.skipped), content.sha256)


def _file_digest(path: Path, text: str) -> str:
    """Return the SHA-256 of a file, with progress, as it may be larger than memory."""
    digest, total = hashlib.sha256(), -(-path.stat().st_size // CHUNK)
    with path.open("rb") as file:
        for chunk in track(iter(lambda: file.read(CHUNK), b""), text, total):
            digest.update(chunk)
    return digest.hexdigest()


def _build(table: Table, preprocessing: Preprocessing, workers: int, index: Path, data: Path) -> None:
    index.parent.mkdir(parents=True, exist_ok=True)
    needed = len(table) * _typical_bytes(table, preprocessing, workers)
    free = shutil.disk_usage(index.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    rows: list[int] = []
    shapes: list[tuple[int, ...]] = []
    skipped: list[Skipped] = []
    digest = hashlib.sha256()
    part = temporary_name(data)
    try:
        with part.open("wb") as file:
            decoded = track(_decode_all(table, preprocessing, workers), f"Decoding {table.name}", len(table))
            for row, image in enumerate(decoded):
                if isinstance(image, str):
                    skipped.append(Skipped(table.images[row], image))
                else:
                    rows.append(row)
                    shapes.append(image.shape[:2])
                    file.write(np.ascontiguousarray(image).data)
                    digest.update(np.ascontiguousarray(image).data)
            file.flush()
            os.fsync(file.fileno())
        rename(part, data)
    finally:
        part.unlink(missing_ok=True)
    part = temporary_name(index)
    content = {"rows": rows, "shapes": shapes, "skipped": skipped, "sha256": digest.hexdigest()}
    part.write_text(json.dumps(content), encoding="utf-8")
    rename(part, index)


def _decode_all(table: Table, preprocessing: Preprocessing, workers: int) -> Iterator[NDArray[np.uint8] | str]:
    """Yield each image in order, or the reason why it is unreadable."""
    ahead = 0 if preprocessing.cache_size == "full" else min(256, IN_FLIGHT // (preprocessing.side**2 * 3))
    for _, answer in decode_all("pixels", table.sources(), workers, ahead, **preprocessing.decode_options()):
        yield str(answer) if isinstance(answer, ImageError) else answer.pixels


def _typical_bytes(table: Table, preprocessing: Preprocessing, workers: int) -> int:
    """Return the bytes per image in the cache; for full images, an estimate from the headers of a sample."""
    if preprocessing.cache_size != "full":
        return preprocessing.side**2 * 3
    return round(3 * np.mean([width * height for width, height in header_sizes(table, workers)] or [0]))


def header_sizes(table: Table, workers: int) -> list[tuple[int, int]]:
    """Return the width and height of about 200 of a table's images, from their headers."""
    sample = table.sources(max(1, len(table) // 200))
    return [tuple(answer.facts["size"]) for _, answer in decode_all("size", sample, workers) if isinstance(answer, Answer)]


def _key(table: Table, settings: str) -> str:
    digest = hashlib.sha256(f"3 {PIL.__version__} {settings}\n".encode())
    if table.pixels is not None:
        digest.update(repr(table.pixels.shape).encode())
        digest.update(np.ascontiguousarray(table.pixels).data)
        return digest.hexdigest()[:20]
    for row, name in enumerate(table.images):
        try:
            stat = table.file(row).stat()
            fact = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        except OSError:
            fact = f"{name}\0missing\n"
        digest.update(fact.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:20]


def _remove_others(index: Path) -> None:
    """Remove older caches in this folder, and temporary files of killed processes."""
    remove_leftovers(index.parent)
    for file in index.parent.iterdir():
        if file.suffix != ".part" and not file.name.startswith(index.stem):
            with suppress(PermissionError):  # another user's file, or one that another process maps on Windows
                file.unlink(missing_ok=True)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
