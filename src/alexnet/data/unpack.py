"""Unpack downloaded archives to disk: only the files that are expected, within a limit, and nothing that leads elsewhere."""

import gzip
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from alexnet.errors import DataError, printable, truncate
from alexnet.files import remove_leftovers, rename, temporary_name
from alexnet.progress import track

CHUNK = 1 << 20  # bytes to copy at a time
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class Member(NamedTuple):
    """A file in an archive; `content` is None for a link, a device or the like."""

    name: str
    content: IO[bytes] | None


def unpack(archive: Path, folder: Path, wanted: re.Pattern[str], most: int) -> None:
    """Unpack the files of a .tgz or .zip archive whose names match `wanted` to a new folder, under the names of its group 1.

    Raises:
        DataError: the archive is damaged, holds a link or a name that leads out of the folder, or unpacks to more than `most`
            bytes. No folder is left then.
    """
    remove_leftovers(folder.parent, f"{folder.name}.*-*.part")
    part = temporary_name(folder)
    part.mkdir()
    try:
        _unpack(archive, part, wanted, most)
        getattr(os, "sync", lambda: None)()
        rename(part, folder)
    except DAMAGED as error:
        reason = printable(str(error) or type(error).__name__)
        raise DataError(f"{archive}: cannot be unpacked ({truncate(reason)}); remove it and repeat the command") from error
    except OSError:
        if not folder.is_dir():  # if it is, another process was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack(archive: Path, folder: Path, wanted: re.Pattern[str], most: int) -> None:
    with archive.open("rb") as file:
        members = _zip_members(file) if archive.suffix == ".zip" else _tar_members(archive, file, most)
        left = most
        for member in track(members, f"Unpacking {archive.name}"):
            path = PurePosixPath(member.name.replace("\\", "/"))
            if member.content is None or path.is_absolute() or ".." in path.parts or ":" in member.name:
                problem = f"{truncate(printable(member.name))!r}, which is a link or leads out of the folder"
                raise DataError(f"{archive} holds {problem}: it is not unpacked")
            if (match := wanted.fullmatch(member.name)) is None:
                continue
            target = folder / match[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                while chunk := member.content.read(CHUNK):
                    left -= len(chunk)
                    _check_size(archive, left, most)
                    out.write(chunk)


def _check_size(archive: Path, left: int, most: int) -> None:
    if left < 0:
        raise DataError(f"{archive} unpacks to more than {most:,} bytes: it is not unpacked")


def _zip_members(file: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if not info.is_dir():
                with archive.open(info) as content:
                    yield Member(info.filename, content if kind in (0, stat.S_IFREG) else None)


def _tar_members(path: Path, file: IO[bytes], most: int) -> Iterator[Member]:
    with gzip.GzipFile(fileobj=file) as unzipped:
        limited = _Limited(path, unzipped, 2 * most)  # with headers, and files that are not wanted
        with tarfile.open(fileobj=limited, mode="r|") as archive:  # type: ignore[call-overload]  # it only reads
            for info in archive:
                if not info.isdir():
                    yield Member(info.name, archive.extractfile(info) if info.isreg() else None)


class _Limited:
    """A file to read, at most `most` bytes of it."""

    def __init__(self, path: Path, file: gzip.GzipFile, most: int) -> None:
        self._path, self._file, self._most, self._left = path, file, most, most

    def read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        self._left -= len(chunk)
        _check_size(self._path, self._left, self._most)
        return chunk
