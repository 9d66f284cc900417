"""Read files inside tar archives, here or on a server, without unpacking them."""

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from alexnet.data import remote
from alexnet.data.contents import stat_fact
from alexnet.errors import DataError, error_reason, printable, truncate


class Member(NamedTuple):
    """A file in an archive: its name, where its content begins, in bytes from the start of the archive, and its size.

    `content` is the file's content, if it was asked for.
    """

    name: str
    start: int
    size: int
    content: bytes = b""


END = 1 << 20  # bytes behind the last member to look at; they are zeros, up to a multiple of 10,240 bytes


class DamagedArchive(DataError):
    """A file is no tar archive, is compressed as a whole, or is cut off."""


class Tar:
    """An archive, without compression as a whole: the path of a file, or a URL. Several threads may read from it."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._known = ""

    @property
    def path(self) -> Path:
        """The path; of a URL, with a single slash after the scheme."""
        return Path(self.location)

    @property
    def stem(self) -> str:
        """The archive's name without its ending."""
        return self.path.stem

    def fact(self) -> str:
        """Return what changes when the archive does."""
        if not self._known:
            if remote.is_remote(self.location):
                self._known = remote.fact(self.location)
            else:
                self._known = stat_fact(os.stat(self.location))
        return self._known

    def read(self, place: tuple[int, int]) -> bytes:
        """Return the bytes at (start, size)."""
        start, size = place
        if remote.is_remote(self.location):
            content = remote.read(self.location, start, size)
        else:
            try:
                with open(self.location, "rb", buffering=0) as file:
                    same = stat_fact(os.fstat(file.fileno())) == self.fact()
                    file.seek(start)
                    content = file.read(size)
            except OSError as error:
                raise DataError(f"cannot read {self.location}: {error_reason(error)}") from error
            if not same:
                raise DataError(f"{self.location} has changed since it was listed: start again")
        if len(content) > size:
            raise DataError(f"{self.location}: its server sends the whole file for a part of it (no support for ranges)")
        if len(content) < size:
            raise DataError(f"{self.location} has changed: it is shorter than when it was listed")
        return content

    def members(self, inside: Member | None = None, wanted: Callable[[str, int], bool] | None = None) -> Iterator[Member]:
        """Yield the files of the archive, or of an archive that is a member of it, in order.

        `wanted` says of a name and a size whether the file's content is.

        Raises:
            DamagedArchive: it is damaged; the members before that place are yielded first.
            DataError: it cannot be read.
        """
        where = f"{self.location}, {printable(inside.name)}" if inside else self.location
        try:
            with self._open() as file:
                end = inside.start + inside.size if inside else file.seek(0, os.SEEK_END)
                file.seek(inside.start if inside else 0)
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    while (info := archive.next()) is not None:
                        vars(archive)["members"].clear()  # it would keep all of them in memory
                        if info.isreg() and info.offset_data + info.size > end:
                            raise tarfile.ReadError("unexpected end of data")
                        if info.isreg():
                            content = b""
                            if wanted and wanted(info.name, info.size):
                                file.seek(info.offset_data)
                                content = file.read(info.size)
                            yield Member(info.name, info.offset_data, info.size, content)
                    self._check_end(file, archive.offset, end)
        except tarfile.TarError as error:
            raise DamagedArchive(f"{where} is cut off, or not a tar archive: {truncate(printable(str(error)))}") from error
        except DataError:
            raise
        except Exception as error:  # of the system, or of a server, whose library has types of its own
            reason = error_reason(error) if isinstance(error, OSError) else printable(str(error) or type(error).__name__)
            raise DataError(f"cannot read {self.location}: {truncate(reason)}") from error

    @staticmethod
    def _check_end(file: Any, last: int, end: int) -> None:
        """Raise ReadError unless zeros follow the last member: tarfile takes whatever is no header for the end."""
        file.seek(last)
        rest = file.read(min(end - last, END))
        if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
            raise tarfile.ReadError("no end, or more behind it")

    def _open(self) -> IO[bytes] | Any:
        return remote.opened(self.location) if remote.is_remote(self.location) else open(self.location, "rb")
