"""Cache of decoded images: parts of consecutive rows of a table, memory-mapped; see cache_part.py.

The folder of a cache is named by a hash of the dataset's path and the preprocessing, a part by a hash of each image's name,
size and modification time, the preprocessing and Pillow's version. A file that is changed, added or removed changes the name of
its part, which is then built anew, from older ones where images are the same. So a stopped process leaves the parts that it has
built to the next, and processes, or machines that share a disk, build a cache together: each begins with what no other writes.
"""

import hashlib
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, tee
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from numpy.typing import NDArray

from alexnet.data.cache_part import Decoded, Part, digest, read_part, write_part
from alexnet.data.decode_pool import Answer, decode_all, decode_one
from alexnet.data.on_demand import OnDemand, decode_on_demand
from alexnet.data.pixels import gather
from alexnet.data.preprocessing import PixelArray
from alexnet.data.table import Skipped, Table
from alexnet.errors import DataError, ImageError, RunError, error_reason, truncate
from alexnet.files import expand_user, remove_leftovers, user_cache
from alexnet.progress import say, track
from alexnet.recipe import Preprocessing

IN_FLIGHT = 64_000_000  # approximate bytes of images decoded ahead
LEAST_ROWS, MOST_PARTS = 512, 128  # of a part, and of a cache, as each part keeps a file open
BUSY = 60.0  # seconds after which a file that has not grown is no longer being written
Where = Literal["auto", "disk", "none"]  # to keep decoded images


@dataclass(frozen=True, eq=False)
class CachedImages:
    """The images in the `parts` of a cache, which are the `rows` of a table.

    Each is compared with its digest when it is first taken, and decoded again if it is damaged.
    """

    parts: Sequence[Part]
    rows: NDArray[np.int64]
    table: Table
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def shapes(self) -> NDArray[np.int64]:
        """The height and width of each image, N x 2."""
        return np.concatenate([part.pixels.shapes for part in self.parts])

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *np.cumsum([len(part.rows) for part in self.parts]).tolist()]

    @cached_property
    def _intact(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.rows), dtype=bool)

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return one image, H W 3."""
        number = bisect_right(self._starts, row) - 1
        part, position = self.parts[number], row - self._starts[number]
        image = part.pixels.image(position)
        if not self._intact[row]:
            if digest(image) != part.digests[position]:
                return self._decode_again(part, position, row)
            self._intact[row] = True
        return image

    def take(self, rows: NDArray[np.int64]) -> PixelArray:
        """Return images for a batch: N S S 3, S = `side`, uint8, or float32 if full images are resized."""
        return gather(map(self.image, rows.tolist()), self.preprocessing)

    def _decode_again(self, part: Part, position: int, row: int) -> NDArray[np.uint8]:
        if part.index.exists():
            say(f"{part.index.with_suffix('.u8')} is damaged: its images are decoded again, now and at the next start")
            part.index.unlink(missing_ok=True)
        image = OnDemand(self.table, self.preprocessing).image(int(self.rows[row]))
        if digest(image) != part.digests[position]:
            name = truncate(self.table.images[self.rows[row]])
            raise DataError(f"{self.table.name}: {name} has changed since it was cached: start again")
        return image


@dataclass(frozen=True, eq=False)
class Cache:
    """The `pixels` of the readable `rows` of a table, and their SHA-256; the other rows are `skipped`."""

    pixels: CachedImages | OnDemand
    rows: NDArray[np.int64]
    skipped: tuple[Skipped, ...]
    sha256: str

    def thumbnails(self) -> NDArray[np.uint8]:
        """Return the images' thumbnails, N x 768, to find near-duplicates by."""
        assert isinstance(self.pixels, CachedImages)
        return np.concatenate([part.thumbnails() for part in self.pixels.parts])


def cache_folder() -> Path:
    """Return the folder of all caches: ALEXNET_CACHE, else the system's folder for caches."""
    return expand_user(os.environ.get("ALEXNET_CACHE") or user_cache() / "images")


class DiskFull(OSError):
    """The decoded images do not fit onto the disk."""


def open_cache(table: Table, preprocessing: Preprocessing, workers: int, where: Where = "disk") -> Cache:
    """Open the cache of `table`, and build with `workers` processes what it lacks.

    With `where` = `none`, images are decoded whenever they are taken; with `auto`, if they do not fit onto the disk.
    """
    settings = preprocessing.model_dump_json(include={"cache_size", "fit", "filter", "reduced_decode"})
    name = "\0".join([str(table.root or "memory"), table.name, settings]).encode("utf-8", "surrogateescape")
    folder = cache_folder() / f"{table.name}-{hashlib.sha256(name).hexdigest()[:12]}"
    prints = fingerprints(table, settings)
    if where == "none":
        return _on_demand(table, preprocessing, prints)
    try:
        parts = _parts(table, preprocessing, workers, folder, settings, prints)
    except (OSError, RunError) as error:
        if where == "auto" and isinstance(error, DiskFull):
            say(f"{table.name}: images are decoded again in each epoch, as {error} in {folder}")
            return _on_demand(table, preprocessing, prints)
        advice = "free some space there, or set the environment variable ALEXNET_CACHE to another folder"
        raise DataError(f"cannot cache decoded images in {folder}: {error_reason(error)}; {advice}") from error
    return _cache(table, preprocessing, parts)


def _cache(table: Table, preprocessing: Preprocessing, parts: Sequence[Part]) -> Cache:
    firsts = range(0, len(table), rows_per_part(len(table)))
    pairs = [*zip(firsts, parts, strict=True)]
    rows = np.array([first + row for first, part in pairs for row in part.rows.tolist()], dtype=np.int64)
    unreadable = [(first + row, reason) for first, part in pairs for row, reason in part.unreadable.items()]
    if not len(rows):
        name, reason = (table.images[unreadable[0][0]], unreadable[0][1]) if unreadable else ("", "it has no images")
        raise DataError(f"{table.name} has no readable image; the first, {truncate(name)}: {reason}")
    skipped = tuple(Skipped(table.images[row], reason) for row, reason in unreadable)
    sha256 = hashlib.sha256("".join(text for part in parts for text in part.digests).encode()).hexdigest()
    return Cache(CachedImages(parts, rows, table, preprocessing), rows, skipped, sha256)


def rows_per_part(count: int) -> int:
    """Return the number of a table's `count` rows in each part of its cache."""
    result = LEAST_ROWS
    while result * MOST_PARTS < count:
        result *= 2
    return result


def _on_demand(table: Table, preprocessing: Preprocessing, prints: Sequence[str]) -> Cache:
    pixels, sha256 = decode_on_demand(table, preprocessing, prints)
    return Cache(pixels, np.arange(len(table)), (), sha256)


def _parts(
    table: Table, preprocessing: Preprocessing, workers: int, folder: Path, settings: str, prints: Sequence[str]
) -> list[Part]:
    """Return the parts of a cache, after building those that are missing."""
    size = rows_per_part(len(table))
    ranges = [range(first, min(first + size, len(table))) for first in range(0, len(table), size)]
    indexes = [folder / f"{_key(table, settings, prints, rows)}.json" for rows in ranges]
    found = {index: read_part(index, preprocessing) for index in indexes}
    if missing := {index: rows for index, rows in zip(indexes, ranges, strict=True) if found[index] is None}:
        _build(table, preprocessing, workers, missing, prints)
        found |= {index: read_part(index, preprocessing) for index in missing}
    _remove_others(folder, {index.stem for index in indexes})
    if lost := [index.name for index, part in found.items() if part is None]:
        raise OSError(f"{lost[0]} differs from what was written")
    return [part for index in indexes if (part := found[index])]


def _build(table: Table, preprocessing: Preprocessing, workers: int, missing: dict[Path, range], prints: Sequence[str]) -> None:
    """Build the missing parts of a cache: their indexes, and their rows of the table."""
    folder = next(iter(missing)).parent
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    count = sum(map(len, missing.values()))
    _check_space(table, preprocessing, workers, folder, count)
    known = _known(folder, preprocessing, {prints[row] for rows in missing.values() for row in rows} if prints else set())
    ahead_of_us, ours = tee(_unbuilt(missing, preprocessing))
    new = (table.source(row) for index in ahead_of_us for row in missing[index] if not (prints and prints[row] in known))
    work, options = "cached" if prints else "pixels", preprocessing.decode_options()
    ahead = 0 if preprocessing.cache_size == "full" else min(256, IN_FLIGHT // (preprocessing.side**2 * 3))
    answers = decode_all(work, new, workers, ahead, **options)

    def decoded(row: int, position: int) -> Decoded:
        fingerprint = prints[row] if prints else ""
        if fingerprint in known:
            part, place, thumbnail = known[fingerprint]
            if digest(image := part.pixels.image(place)) == part.digests[place]:
                return Decoded(position, image, thumbnail, fingerprint)
            answer = decode_one(work, table.source(row), options)
        else:
            _, answer = next(answers)
        if isinstance(answer, ImageError):
            return Decoded(position, answer)
        return Decoded(position, answer.pixels, answer.thumbnail.tobytes() if prints else b"", fingerprint)

    tasks = ((index, row) for index in ours for row in missing[index])
    for index, rows in groupby(track(tasks, f"Decoding {table.name}", count), key=itemgetter(0)):
        write_part(index, (decoded(row, row - missing[index].start) for _, row in rows))


def _unbuilt(indexes: Iterable[Path], preprocessing: Preprocessing) -> Iterator[Path]:
    """Yield parts that no other process has built or is building; then those that others have not finished by then."""
    others = []
    for index in indexes:
        if any(_grows(file) for file in index.parent.glob(f"{index.stem}.u8.*.part")):
            others.append(index)
        elif read_part(index, preprocessing) is None:
            yield index
    yield from (index for index in others if read_part(index, preprocessing) is None)


def _grows(file: Path) -> bool:
    with suppress(OSError):  # it is complete, and was renamed
        return time.time() - file.stat().st_mtime < BUSY
    return False


def _check_space(table: Table, preprocessing: Preprocessing, workers: int, folder: Path, count: int) -> None:
    """Raise DiskFull unless `count` images of a table fit onto the disk."""
    pixels = float(preprocessing.side**2)
    if preprocessing.cache_size == "full":
        pixels = float(np.mean([width * height for width, height in header_sizes(table, workers)] or [0]))  # an estimate
    needed, free = count * round(3 * pixels), shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(f"{needed / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free")


def _known(folder: Path, preprocessing: Preprocessing, wanted: Set[str]) -> dict[str, tuple[Part, int, bytes]]:
    """Return where to find the `wanted` images, given by fingerprints, in the parts of a folder, and their thumbnails."""
    result: dict[str, tuple[Part, int, bytes]] = {}
    for index in folder.glob("*.json") if wanted else ():
        part = read_part(index, preprocessing)
        if part is not None and not wanted.isdisjoint(part.prints):
            thumbnails = part.thumbnails()
            result |= {text: (part, i, thumbnails[i].tobytes()) for i, text in enumerate(part.prints) if text in wanted}
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


def _key(table: Table, settings: str, prints: Sequence[str], rows: range) -> str:
    """Return the name of the part with these rows of a table."""
    result = hashlib.sha256(f"6 {PIL.__version__} {settings}\n".encode())
    if table.pixels is not None:
        pixels = np.ascontiguousarray(table.pixels[rows.start : rows.stop])
        result.update(repr(pixels.shape).encode())
        result.update(pixels.data)
    result.update("".join(prints[rows.start : rows.stop]).encode())
    return result.hexdigest()[:20]


def _remove_others(folder: Path, keys: Set[str]) -> None:
    """Remove older parts in a cache's folder, and temporary files of killed processes."""
    remove_leftovers(folder)
    for file in folder.iterdir():
        if file.suffix != ".part" and file.stem not in keys:
            with suppress(PermissionError):  # another user's file, or one that another process maps on Windows
                file.unlink(missing_ok=True)
