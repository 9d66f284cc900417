"""Read files inside tar archives, without unpacking them."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from alexnet.errors import DataError, error_reason, printable, truncate


class Member(NamedTuple):
    """A file in an archive: its name, and where its content begins, in bytes from the start of the archive, and its size."""

    name: str
    start: int
    size: int


class Tar:
    """An archive at `path`, without compression as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, place: tuple[int, int]) -> bytes:
        """Return the bytes at (start, size)."""
        start, size = place
        try:
            self._file = self._file or self.path.open("rb")
            self._file.seek(start)
            content = self._file.read(size)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error_reason(error)}") from error
        if len(content) < size:
            raise DataError(f"{self.path} has changed: it is shorter than when it was opened")
        return content

    def members(self, inside: Member | None = None) -> Iterator[Member]:
        """Yield the files of the archive, or of an archive that is a member of it, in order; then close it.

        Raises:
            DataError: it is no tar archive, is compressed as a whole, or is cut off; members before the end are yielded first.
        """
        where = f"{self.path}, {printable(inside.name)}" if inside else str(self.path)
        try:
            with self.path.open("rb") as file:
                end = inside.start + inside.size if inside else file.seek(0, os.SEEK_END)
                file.seek(inside.start if inside else 0)
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    while (info := archive.next()) is not None:
                        vars(archive)["members"].clear()  # it would keep all of them in memory
                        if info.isreg() and info.offset_data + info.size > end:
                            raise tarfile.ReadError("unexpected end of data")
                        if info.isreg():
                            yield Member(info.name, info.offset_data, info.size)
        except tarfile.TarError as error:
            raise DataError(f"{where} is cut off, or not a tar archive: {truncate(printable(str(error)))}") from error
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error_reason(error)}") from error
