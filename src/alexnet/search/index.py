"""An index of codes on disk, in faiss' files, exact and binary; it grows by adding.

    search.json           what counts: the files below, each with its size and SHA-256, and the weights that they belong to
    images-N.json         for each row its image's path, bytes and time of change; null where it no longer is that image
    exact-N.faiss         codes of up to `SHARD` rows, float32; rows go on from one such file to the next
    binary-N.faiss        short codes of all rows
    coder-N.safetensors   what makes short codes (hashing.py)

No file is changed: new ones are written under the next number N, then search.json, and from that moment on they count.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from alexnet.errors import AlexNetError, RunError, error_reason
from alexnet.files import locked, read_json, sha256, write, write_json
from alexnet.progress import say
from alexnet.run import read_model
from alexnet.search import hashing
from alexnet.search.hashing import Coder

SHARD = 8192  # rows: 134 MB of 4096 numbers each; indexing keeps a few times that in memory, however many images there are
ENCODED = 1024  # rows at a time
CATALOGUE, LOCK = "search.json", "search.lock"
NAME = re.compile(r"(images|exact|binary|coder)-[0-9]+\.(json|faiss|safetensors)")

if hasattr(os, "register_at_fork"):  # faiss has threads of its own; see network/device.py
    os.register_at_fork(after_in_child=lambda: "faiss" in sys.modules and sys.modules["faiss"].omp_set_num_threads(1))


class Entry(NamedTuple):
    """An image when its code was made: absolute path, size in bytes, time of its last change in nanoseconds."""

    path: str
    bytes: int
    changed: int


class File(BaseModel):
    """A file of the index; `rows` of a coder are its bits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    rows: Annotated[int, Field(ge=0)]
    bytes: int
    sha256: str


class Catalogue(BaseModel):
    """`search.json`: `model` is the SHA-256 of the run's weights, `layer` gives the codes, of `dimension` numbers each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    number: int = 0
    model: str
    layer: str
    dimension: Annotated[int, Field(ge=1)]
    images: File | None = None
    exact: tuple[File, ...] = ()
    binary: File | None = None
    coder: File | None = None


@dataclass(frozen=True, eq=False)
class Index:
    """The index in `folder`, as `catalogue` says. What makes it grow returns another one, which is on disk then."""

    folder: Path
    catalogue: Catalogue

    @cached_property
    def entries(self) -> list[Entry | None]:
        """The image of each row; None where the row no longer counts."""
        if self.catalogue.images is None:
            return []
        place = self._checked(self.catalogue.images)
        try:
            entries = [None if entry is None else Entry(*entry) for entry in json.loads(place.read_bytes())]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{place} cannot be read: {error}; {self._anew}") from error
        texts = all(isinstance(entry.path, str) for entry in entries if entry is not None)
        if not texts or len(entries) != sum(file.rows for file in self.catalogue.exact):
            raise RunError(f"{place} is not what {CATALOGUE} says; {self._anew}")
        return entries

    @cached_property
    def alive(self) -> NDArray[np.int64]:
        """Rows that count."""
        return np.array([row for row, entry in enumerate(self.entries) if entry is not None], dtype=np.int64)

    @cached_property
    def coder(self) -> Coder | None:
        """What makes short codes; None as long as there are too few images to learn from."""
        return None if self.catalogue.coder is None else hashing.load(self._checked(self.catalogue.coder))

    @cached_property
    def exact(self) -> Any:
        """The faiss index of all codes. Its files stay on disk, mapped, and are searched side by side."""
        whole = faiss().IndexShards(self.catalogue.dimension, True, True)
        for file in self.catalogue.exact:
            whole.add_shard(self._exact(file))
        return whole

    @cached_property
    def binary(self) -> Any:
        """The faiss index of all short codes; an empty one if there are none."""
        return self._binary()

    def _binary(self) -> Any:
        """Read it anew: what is to grow must not be what others search."""
        library, file = faiss(), self.catalogue.binary
        if file is None or self.coder is None:
            return library.IndexBinaryFlat(8)
        place = self._checked(file, self.coder.bits // 8)
        return self._read(place, file, self.coder.bits, lambda: library.deserialize_index_binary(np.fromfile(place, np.uint8)))

    def nearest(self, code: NDArray[np.float32], top: int, binary: bool, but: str = "") -> list[tuple[str, float]]:
        """Return the paths of the `top` images nearest to a code of D numbers, nearest first, and their distances.

        Distances are Euclidean, between codes, or with `binary` the number of bits that differ between short codes. The image
        with the path `but` is left out.

        Raises:
            RunError: there are no short codes, or a file is damaged.
        """
        rows = len(self.entries)
        wanted = min(rows, top + rows - len(self.alive) + 1)
        if not binary:
            squares, found = self.exact.search(code[None], wanted)
            distances = np.sqrt(squares)
        elif self.coder is None or self.binary.ntotal < rows:
            raise RunError(
                f"{self.folder} has no short codes of {rows - self.binary.ntotal:,} images: add images until there are "
                f"{hashing.LEAST} (alexnet search index, which goes on where it was stopped), or search without --binary"
            )
        else:
            distances, found = self.binary.search(self.coder.encode(code[None]), wanted)
        near = [(self.entries[row], float(distance)) for row, distance in zip(found[0], distances[0], strict=True)]
        return [(entry.path, distance) for entry, distance in near if entry is not None and entry.path != but][:top]

    # Growing

    def without(self, rows: set[int]) -> Index:
        """Let `rows` no longer count."""
        entries = [None if row in rows else entry for row, entry in enumerate(self.entries)]
        return self._commit(images=self._images(entries)) if rows else self

    def plus(self, entries: Sequence[Entry], added: NDArray[np.float32]) -> Index:
        """Add at most `SHARD` images with their codes, N x D float32; they are found from now on, but for `binary`."""
        library, files = faiss(), list(self.catalogue.exact)
        index = library.IndexFlatL2(self.catalogue.dimension)
        if files and files[-1].rows + len(added) <= SHARD:
            index.add(_rows(self._exact(files.pop()), slice(None)))
        index.add(added)
        files.append(self._write("exact", index.ntotal, "faiss", library.serialize_index(index).tofile))
        return self._commit(images=self._images([*self.entries, *entries]), exact=tuple(files))

    def binarized(self, bits: int) -> Index:
        """Give a short code to each row that has none; for the first ones an auto-encoder of `bits` is trained."""
        library, coder, changes = faiss(), self.coder, dict[str, File]()
        if coder is None:
            if len(self.alive) < hashing.LEAST:
                say(f"{len(self.alive)} images are too few to learn short codes from ({hashing.LEAST}): exact search alone")
                return self
            coder = hashing.learn(self._sample(), bits)
            changes["coder"] = self._write("coder", bits, "safetensors", lambda part: hashing.save(coder, part))
        index = self._binary() if self.catalogue.binary else library.IndexBinaryFlat(coder.bits)
        if index.ntotal == len(self.entries):
            return self
        for part in self._codes(index.ntotal):
            index.add(coder.encode(part))
        changes["binary"] = self._write("binary", index.ntotal, "faiss", library.serialize_index_binary(index).tofile)
        return self._commit(**changes)

    def _sample(self) -> NDArray[np.float32]:
        """Return the codes of up to `hashing.MOST` images, evenly spaced."""
        alive = self.alive
        chosen = alive[np.linspace(0, len(alive) - 1, min(len(alive), hashing.MOST)).astype(np.int64)]
        found, first = [], 0
        for file in self.catalogue.exact:
            here = chosen[(chosen >= first) & (chosen < first + file.rows)] - first
            found.append(_rows(self._exact(file), here))
            first += file.rows
        return np.concatenate(found)

    def _codes(self, start: int) -> Iterator[NDArray[np.float32]]:
        """Yield the codes from row `start` on, a few rows at a time."""
        for file in self.catalogue.exact:
            if start < file.rows:
                index = self._exact(file)
                for first in range(start, file.rows, ENCODED):
                    yield _rows(index, slice(first, first + ENCODED))
            start = max(0, start - file.rows)

    def _images(self, entries: Sequence[Entry | None]) -> File:
        text = json.dumps(entries)  # in ASCII: names of files need not be UTF-8
        return self._write("images", len(entries), "json", lambda part: part.write_text(text, encoding="ascii"))

    def _write(self, kind: str, rows: int, suffix: str, writer: Callable[[Path], object]) -> File:
        place = self.folder / f"{kind}-{self.catalogue.number + 1}.{suffix}"
        write(place, writer)
        return File(name=place.name, rows=rows, bytes=place.stat().st_size, sha256=sha256(place))

    def _commit(self, **files: File | tuple[File, ...]) -> Index:
        """Let `files` count, and remove those that no longer do."""
        catalogue = self.catalogue.model_copy(update={**files, "number": self.catalogue.number + 1})
        write_json(self.folder / CATALOGUE, catalogue.model_dump())
        counting = (catalogue.images, *catalogue.exact, catalogue.binary, catalogue.coder)
        names = {file.name for file in counting if file is not None}
        for place in self.folder.iterdir():
            if NAME.fullmatch(_finished(place.name)) and place.name not in names:
                with suppress(OSError):  # Windows keeps what somebody searches; the next time, then
                    place.unlink()
        return Index(self.folder, catalogue)

    # Reading

    def _exact(self, file: File) -> Any:
        library, place = faiss(), self._checked(file, 4 * self.catalogue.dimension)
        mapped = library.IO_FLAG_MMAP_IFC
        return self._read(place, file, self.catalogue.dimension, lambda: library.read_index(str(place), mapped))

    def _checked(self, file: File, row: int = 0) -> Path:
        """Return the path of a file, if it is as it was written and has room for its rows, of so many bytes each.

        Raises:
            RunError: it is missing or damaged.
        """
        place = self.folder / file.name
        try:
            sound = place.stat().st_size == file.bytes >= file.rows * row and sha256(place) == file.sha256
        except OSError as error:
            if self._grown():
                raise RunError(f"images were added to {self.folder} meanwhile: ask again") from error
            raise RunError(f"{place} cannot be read: {error_reason(error)}; {self._anew}") from error
        if not sound:
            raise RunError(f"{place} is damaged: its size or SHA-256 is not the one in {CATALOGUE}; {self._anew}")
        return place

    def _grown(self) -> bool:
        """Tell whether another process has added to the index since it was opened, whose files are then others."""
        try:
            return bool(read_json(self.folder / CATALOGUE).get("number", 0) != self.catalogue.number)
        except RunError:
            return False

    def _read(self, place: Path, file: File, dimension: int, reader: Callable[[], Any]) -> Any:
        try:
            index = reader()
        except (RuntimeError, MemoryError, OSError, TypeError) as error:  # TypeError: a path that is no UTF-8
            raise RunError(f"faiss cannot read {place}: {str(error).splitlines()[0]}; {self._anew}") from error
        if (index.d, index.ntotal) != (dimension, file.rows):
            raise RunError(f"{place} is not what {CATALOGUE} says; {self._anew}")
        return index

    @property
    def _anew(self) -> str:
        return f"remove {self.folder} and index the images anew (alexnet search index)"


def open_index(folder: Path, model: str) -> Index:
    """Open the index in `folder`, made with the weights whose SHA-256 is `model`.

    Raises:
        RunError: there is none, it is damaged, from a newer version, or was made with other weights.
    """
    try:
        state = (folder / CATALOGUE).stat()
    except OSError as error:
        raise RunError(f"no index {folder}: alexnet search index makes one of a folder of images") from error
    index = _opened(folder.absolute(), state.st_mtime_ns, state.st_ino)
    if index.catalogue.model != model:
        raise RunError(f"{folder} was made with other weights than the run's: remove it and index the images anew")
    return index


@lru_cache(maxsize=1)  # who searches again does not wait again for files to be checked
def _opened(folder: Path, changed: int, inode: int) -> Index:
    place = folder / CATALOGUE
    index = Index(folder, read_model(Catalogue, place))
    return index


def new_index(folder: Path, model: str, layer: str, dimension: int) -> Index:
    """Return an empty index, of which nothing is on disk yet."""
    return Index(folder, Catalogue(model=model, layer=layer, dimension=dimension))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder of an index, if it is not there, and keep other processes from adding to it.

    Raises:
        RunError: another process is adding, the folder holds something else, or it cannot be written.
    """
    try:
        if folder.exists() and not (folder / CATALOGUE).exists():
            names = {place.name for place in folder.iterdir()}
            # Without its catalogue, what a killed indexing has left is known by its lock: `images-1.json` may be anybody's.
            if names and (LOCK not in names or any(map(_strange, names))):
                raise RunError(f"{folder} is not empty and holds no index: name another --out")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error_reason(error)}") from error
    with locked(folder / LOCK, f"another process is adding to {folder}: wait until it is done"):
        try:
            yield
        finally:
            if not (folder / CATALOGUE).exists():  # stopped before anything counted
                for place in folder.iterdir():
                    if place.name != LOCK and not _strange(place.name):
                        place.unlink(missing_ok=True)


def _strange(name: str) -> bool:
    """Tell whether a file is none that an indexing leaves, even a stopped one."""
    return name != LOCK and not NAME.fullmatch(_finished(name)) and (name == CATALOGUE or _finished(name) != CATALOGUE)


def _finished(name: str) -> str:
    """Return the name that a file has once it is written."""
    return re.sub(r"\.[0-9a-f]+-\d+\.part$", "", name)


def faiss() -> ModuleType:
    """Return faiss.

    Raises:
        AlexNetError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise AlexNetError("search needs faiss: pip install faiss-cpu") from error
    return faiss


def _rows(index: Any, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a copy of some codes of an exact index, N x D: where they are mapped they are gone with the index."""
    held: NDArray[np.float32] = faiss().rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return held.reshape(index.ntotal, index.d)[rows].copy()
