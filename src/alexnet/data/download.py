"""Files from the network: a local copy where there is one, else a download that is checked and goes on where it stopped."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from alexnet.errors import DataError
from alexnet.files import rename
from alexnet.progress import say, track

TIMEOUT = 30.0  # seconds without a byte from the server
MB = 1_000_000


class Source(NamedTuple):
    """A file to download: `sha256` and `size` in bytes are its own, or those of its unpacked contents if `unpacked`.

    Where less is known, `sha256` is the beginning of it, and `size` the most to expect.
    """

    url: str
    file: str  # where it lies, relative to the data root
    sha256: str
    size: int
    unpacked: bool


def get(source: Source, root: Path) -> tuple[Path, bytes]:
    """Return where `source` lies and its contents, from a local copy if there is one, else downloaded.

    Raises:
        DataError: the local copy is damaged, the download stopped, or its checksum is wrong.
        OSError: a file cannot be read or written.
    """
    place = root / source.file
    names = [place.name, place.stem] if source.unpacked else [place.name]
    for path in (folder / name for folder in (place.parent, root) for name in names):
        if path.is_file():
            content = _contents(path, source)
            if content is None:
                raise DataError(f"{path}: damaged, or not {source.url}; remove it and repeat the command to download it")
            return path, content
    return place, _download(source, place)


def _contents(path: Path, source: Source) -> bytes | None:
    """Return the bytes of a file, unpacked if the checksum is of those; None if they are not those of `source`."""
    with path.open("rb") as file:
        packed = source.unpacked and file.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=file) if packed else file
        try:
            content = stream.read(source.size + 1)  # never more, whatever the file would unpack to
        except (gzip.BadGzipFile, EOFError, zlib.error):
            return None
    return content if hashlib.sha256(content).hexdigest().startswith(source.sha256) else None


def _download(source: Source, path: Path) -> bytes:
    """Download to `path` by way of a `.part` file, which stays if the transfer stops; return the contents.

    Raises:
        DataError: the transfer stopped; the checksum is wrong.
        OSError: the file cannot be written.
    """
    import requests
    import urllib3

    part = path.with_name(f"{path.name}.part")
    by_hand = f"or put the file into {path.parent} by hand (another data folder: --data-root or ALEXNET_DATA)"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("ab") as file:
            _transfer(source, file)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        answer = getattr(error, "response", None)
        reason = type(error).__name__ if answer is None else f"status {answer.status_code}"
        stopped = f"{source.url}: the download stopped after {part.stat().st_size:,} bytes ({reason})"
        raise DataError(f"{stopped}; repeat the command to resume it, {by_hand}") from error
    content = _contents(part, source)
    if content is None:
        part.unlink()
        raise DataError(f"{source.url}: wrong checksum, so the file was removed; repeat the command to try again, {by_hand}")
    rename(part, path)
    return content


def _transfer(source: Source, file: IO[bytes]) -> None:
    """Append to `file` what it lacks, or write it anew if the server does not send parts."""
    import requests

    start = file.tell()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    say(f"downloading {source.url} to {file.name}" + (f" from byte {start:,} on" if start else ""))
    with requests.get(source.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if start and response.status_code == 416:  # no more bytes to send: the checksum tells whether the file is whole
            return
        response.raise_for_status()
        if response.status_code != 206:
            start = file.truncate(0)
        length = response.raw.length_remaining
        for _ in track(_save(response.raw, file, source.size + MB - start), "Downloading, in MB", length and -(-length // MB)):
            pass


def _save(body: Any, file: IO[bytes], most: int) -> Iterator[None]:
    """Append an answer's `body` to `file`, `most` bytes or a little more; yield for each megabyte, for the progress."""
    done = 0
    for piece in body.stream(2**16, decode_content=False):  # as it is: some servers call a .gz file an encoding
        file.write(piece)
        done += len(piece)
        if done > most:
            return
        if done // MB > (done - len(piece)) // MB:
            yield
