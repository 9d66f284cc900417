"""Cache of decoded images: parts of consecutive rows of a table, memory-mapped; see cache_part.py.

The folder of a cache is named by a hash of the dataset's path and the preprocessing, a part by a hash of each image's name,
size and modification time, the preprocessing and Pillow's version. A file that is changed, added or removed changes the name of
its part, which is then built anew, from older ones where images are the same. So a stopped process leaves the parts that it has
built to the next, and processes, or machines that share a disk, build a cache together: each begins with what no other writes.
"""

import hashlib
import os
import shutil
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
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
from alexnet.files import DiskFull, cache_remedy, expand_user, is_full, remove_leftovers, user_cache
from alexnet.progress import say, track
from alexnet.recipe import Preprocessing

IN_FLIGHT = 64_000_000  # approximate bytes of images decoded ahead
LEAST_ROWS, MOST_PARTS = 512, 64  # of a part, and of a cache, as each part keeps a file open, and macOS allows 256
BUSY = 60.0  # seconds after which a file that has not grown is no longer being written
KEPT = 24 * 3600.0  # seconds without use after which a part may be removed; others may use it, or be building its cache
ATTEMPTS = 3  # to build a cache whose parts another process removes, for want of space
Where = Literal["auto", "disk", "none"]  # to keep decoded images

_building = threading.Lock()  # temporary files are named by the process


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
            with suppress(OSError):  # as in a folder that cannot be written
                part.index.unlink()
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
        return np.concatenate([part.thumbnails for part in self.pixels.parts])


def cache_folder() -> Path:
    """Return the folder of all caches: ALEXNET_CACHE, else the system's folder for caches."""
    return expand_user(os.environ.get("ALEXNET_CACHE") or user_cache() / "images")


def open_cache(table: Table, preprocessing: Preprocessing, workers: int, where: Where = "disk") -> Cache:
    """Open the cache of `table`, and build with `workers` processes what it lacks.

    With `where` = `none`, images are decoded whenever they are taken; with `auto`, if they do not fit onto the disk.
    """
    settings = preprocessing.model_dump_json(include={"cache_size", "fit", "filter", "reduced_decode"})
    name = "\0".join([str(table.root or "memory"), table.name, settings]).encode("utf-8", "surrogateescape")
    folder = cache_folder() / f"{table.name[:60]}-{hashlib.sha256(name).hexdigest()[:12]}"  # at most 255 bytes
    prints = fingerprints(table, settings)
    if where == "none":
        return _on_demand(table, preprocessing, prints)
    try:
        parts = _parts(table, preprocessing, workers, folder, settings, prints)
    except (OSError, RunError) as error:
        if where == "auto" and is_full(error):
            say(f"{table.name}: images are decoded again in each epoch, as {error_reason(error)} in {folder}")
            return _on_demand(table, preprocessing, prints)
        raise DataError(f"cannot cache decoded images in {folder}: {error_reason(error)}; {cache_remedy(error)}") from error
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
    found: dict[Path, Part | None] = {}
    for _ in range(ATTEMPTS):
        found |= {index: read_part(index, preprocessing) for index in indexes if found.get(index) is None}
        missing = {index: rows for index, rows in zip(indexes, ranges, strict=True) if found[index] is None}
        if not missing:
            _remove_others(folder, indexes)
            return [part for index in indexes if (part := found[index])]
        with _building:
            _build(table, preprocessing, workers, indexes, missing, prints)
    raise OSError(f"{next(iter(missing)).name} differs from what was written")


def _build(
    table: Table,
    preprocessing: Preprocessing,
    workers: int,
    indexes: Sequence[Path],
    missing: Mapping[Path, range],
    prints: Sequence[str],
) -> None:
    """Build the missing parts of those at `indexes`, given with their rows of the table."""
    folder = indexes[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    count = sum(map(len, missing.values()))
    _make_space(table, preprocessing, workers, indexes, count)
    known = _known(folder, preprocessing, {prints[row] for rows in missing.values() for row in rows} if prints else set())
    to_decode, to_write = tee(_unbuilt(missing, preprocessing))  # the same parts: decoding runs ahead of writing
    new = (table.source(row) for index in to_decode for row in missing[index] if not (prints and prints[row] in known))
    work, options = "cached" if prints else "pixels", preprocessing.decode_options()
    ahead = 0 if preprocessing.cache_size == "full" else min(256, IN_FLIGHT // (preprocessing.side**2 * 3))
    answers = decode_all(work, new, workers, ahead, **options)

    def decoded(row: int, position: int) -> Decoded:
        fingerprint = prints[row] if prints else ""
        if fingerprint in known:
            part, place = known[fingerprint]
            if digest(image := part.pixels.image(place)) == part.digests[place]:
                return Decoded(position, image, part.thumbnails[place].tobytes(), fingerprint)
            answer = decode_one(work, table.source(row), options)
        else:
            _, answer = next(answers)
        if isinstance(answer, ImageError):
            return Decoded(position, answer)
        return Decoded(position, answer.pixels, answer.thumbnail.tobytes() if prints else b"", fingerprint)

    tasks = ((index, row) for index in to_write for row in missing[index])
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


def _make_space(table: Table, preprocessing: Preprocessing, workers: int, indexes: Sequence[Path], count: int) -> None:
    """Remove all parts but those at `indexes`, if `count` more images of a table do not fit onto the disk beside them.

    Raises:
        DiskFull: they do not fit without them either.
    """
    folder, pixels = indexes[0].parent, float(preprocessing.side**2)
    if preprocessing.cache_size == "full":
        pixels = float(np.mean([width * height for width, height in header_sizes(table, workers)] or [0]))  # an estimate
    needed = count * round(3 * pixels)
    if needed > shutil.disk_usage(folder).free:
        _remove_others(folder, indexes, unused=0)
    if needed > (free := shutil.disk_usage(folder).free):
        raise DiskFull(f"{needed / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free")


def _known(folder: Path, preprocessing: Preprocessing, wanted: Set[str]) -> dict[str, tuple[Part, int]]:
    """Return where to find the `wanted` images, given by fingerprints, in the parts of a folder."""
    result: dict[str, tuple[Part, int]] = {}
    for index in folder.glob("*.json") if wanted else ():
        part = read_part(index, preprocessing)
        if part is not None and not wanted.isdisjoint(part.prints):
            result |= {text: (part, i) for i, text in enumerate(part.prints) if text in wanted}
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


def _remove_others(folder: Path, indexes: Iterable[Path], unused: float = KEPT) -> None:
    """Remove parts in a cache's folder but those at `indexes`, if nobody used them for some time, and leftover files."""
    remove_leftovers(folder)
    keys, now = {index.stem for index in indexes}, time.time()
    for file in folder.iterdir():
        with suppress(OSError):  # another user's file, one that is open on Windows or NFS, or a folder
            if file.suffix == ".part":
                continue
            if file.stem in keys:
                os.utime(file)
            elif now - file.stat().st_mtime >= unused:
                file.unlink()
