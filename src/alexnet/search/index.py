"""An index of image codes: arrays on disk, and a JSON file that lists which of their rows are in use.

    search.json         the model it belongs to, the image of each row (null: removed), a CRC-32 of each file below
    codes.f32           N x D float32, a row per image
    binary.u8           N x bits / 8 uint8, the short code of each row
    coder.safetensors   computes short codes (hashing.py)

Rows are only ever appended. They are in use once search.json, replaced atomically, lists them; rows left by an interrupted
append are ignored, and overwritten by the next one.
"""

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load, save

from alexnet.errors import RunError, error_reason
from alexnet.files import read_json, write, writing
from alexnet.search import hashing

CATALOGUE, CODES, BINARY, CODER = "search.json", "codes.f32", "binary.u8", "coder.safetensors"
VERSION = 2
ENCODED = 4096  # rows at a time
REBUILD = "remove the index and index the images again (alexnet search index)"


class Entry(NamedTuple):
    """An image at the time its code was computed: absolute path, bytes, modification time in nanoseconds."""

    path: str
    size: int
    mtime: int


@dataclass(frozen=True, eq=False)
class Index:
    """The index in `folder`. Methods that change it write the change to disk and return a new object."""

    folder: Path
    model: str  # SHA-256 of the run's weights
    dimension: int
    bits: int | None = None  # of short codes, if there are any
    crc32: dict[str, int] = field(default_factory=dict)
    entries: list[Entry | None] = field(default_factory=list)

    @cached_property
    def alive(self) -> NDArray[np.int64]:
        """Rows in use."""
        return np.flatnonzero([entry is not None for entry in self.entries])

    @cached_property
    def codes(self) -> NDArray[np.float32]:
        """Codes, N x D, memory-mapped."""
        return self._map(CODES, np.float32, (len(self.entries), self.dimension))

    @cached_property
    def short_codes(self) -> NDArray[np.uint8]:
        """Short codes, N x bits / 8, memory-mapped."""
        return self._map(BINARY, np.uint8, (len(self.entries), (self.bits or 0) // 8))

    @cached_property
    def coder(self) -> hashing.Coder | None:
        """The coder for short codes; None while there are too few images to learn from."""
        return None if self.bits is None else hashing.Coder(**load(self._map(CODER, np.uint8).tobytes()))

    def remove(self, rows: set[int]) -> Self:
        """Mark `rows` as removed."""
        entries = [None if row in rows else entry for row, entry in enumerate(self.entries)]
        return self._commit(entries=entries) if rows else self

    def add(self, entries: Sequence[Entry], codes: NDArray[np.float32]) -> Self:
        """Append images with their codes, N x D float32."""
        crc32 = self.crc32 | self._append(CODES, codes)
        if self.coder:
            crc32 |= self._append(BINARY, self.coder.encode(codes))
        return self._commit(entries=[*self.entries, *entries], crc32=crc32)

    def add_coder(self, coder: hashing.Coder) -> Self:
        """Add short codes for all rows, and for those added later."""
        data = save(coder._asdict())
        write(self.folder / CODER, lambda part: part.write_bytes(data))
        chunks = [coder.encode(self.codes[row : row + ENCODED]) for row in range(0, len(self.codes), ENCODED)]
        crc32 = self.crc32 | {CODER: zlib.crc32(data)} | self._append(BINARY, np.concatenate(chunks))
        return self._commit(bits=len(coder.threshold), crc32=crc32)

    def _map(self, name: str, dtype: Any, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        path = self.folder / name
        try:
            array = np.memmap(path, dtype, "r", shape=shape)
        except (OSError, ValueError, OverflowError) as error:  # a ValueError: it is too short
            raise RunError(f"{path} cannot be read: {error_reason(error)}; {REBUILD}") from error
        if zlib.crc32(array.data) != self.crc32.get(name):
            raise RunError(f"{path} is damaged: its CRC-32 is not the one in {CATALOGUE}; {REBUILD}")
        return array

    def _append(self, name: str, rows: NDArray[Any]) -> dict[str, int]:
        """Append `rows` to those of a file that are in use; return the file's name with the CRC-32 of all rows."""
        path = self.folder / name
        with writing(path):
            path.touch()
            with path.open("r+b") as file:
                file.seek(len(self.entries) * rows[0].nbytes if name in self.crc32 else 0)
                file.write(rows.data)
                file.flush()
                os.fsync(file.fileno())
        return {name: zlib.crc32(rows.data, self.crc32.get(name, 0))}

    def _commit(self, **changes: Any) -> Self:
        index = replace(self, **changes)
        text = json.dumps({"version": VERSION, **{name: value for name, value in vars(index).items() if name != "folder"}})
        write(self.folder / CATALOGUE, lambda part: part.write_text(text, encoding="ascii"))  # file names need not be UTF-8
        return index


def open_index(folder: Path, model: str) -> Index:
    """Open the index in `folder`, made with the weights whose SHA-256 is `model`."""
    try:
        state = (folder / CATALOGUE).stat()
    except OSError as error:
        raise RunError(f"no index {folder}: alexnet search index creates one from a folder of images") from error
    index = _read(folder.absolute(), state.st_mtime_ns, state.st_ino)
    if index.model != model:
        raise RunError(f"{folder} was made with other weights than the run's: {REBUILD}")
    return index


@lru_cache(maxsize=1)  # repeated searches read and check the files once
def _read(folder: Path, mtime: int, inode: int) -> Index:
    path = folder / CATALOGUE
    content = read_json(path)
    if content.pop("version", None) != VERSION:
        raise RunError(f"{path} was written by another version of alexnet: {REBUILD}")
    try:
        return TypeAdapter(Index).validate_python({**content, "folder": folder})
    except ValidationError as error:
        raise RunError(f"{path} is damaged: {error.errors()[0]['msg']}; {REBUILD}") from error
