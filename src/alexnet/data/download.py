"""Download files, or use a local copy: verified by SHA-256, and resumed if a download was interrupted."""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from alexnet.errors import DataError
from alexnet.files import rename, sha256
from alexnet.progress import say, track

T = TypeVar("T")
TIMEOUT = 30.0  # seconds without a byte from the server
MB = 1_000_000


class Source(NamedTuple):
    """A file to download, with the SHA-256 and the size in bytes of the file, or of its contents if `unpacked`.

    Where they are not known exactly, `sha256` is a prefix and `size` an upper bound.
    """

    url: str
    file: str  # its path below the data root
    sha256: str
    size: int
    unpacked: bool


def fetch(source: Source, root: Path) -> tuple[Path, bytes]:
    """Return the path and the contents of `source`, from a local copy if there is one, else downloaded."""
    return _fetch(source, root, _contents)


def fetch_file(source: Source, root: Path) -> Path:
    """Return the path of `source`, as `fetch` does, without reading all of it into memory; it must not be `unpacked`."""
    return _fetch(source, root, _verified)[0]


def _fetch(source: Source, root: Path, read: Callable[[Path, Source], T | None]) -> tuple[Path, T]:
    target = root / source.file
    names = [target.name, target.stem] if source.unpacked else [target.name]
    for path in (folder / name for folder in (target.parent, root) for name in names):
        if path.is_file():
            result = read(path, source)
            if result is None:
                raise DataError(f"{path}: damaged, or not {source.url}; remove it and repeat the command to download it")
            return path, result
    return target, _download(source, target, read)


def _verified(path: Path, source: Source) -> bool | None:
    """Return True if the checksum of a file is right, else None."""
    return True if path.stat().st_size <= source.size and sha256(path).startswith(source.sha256) else None


def _contents(path: Path, source: Source) -> bytes | None:
    """Return the contents of a file, unpacked if the checksum is of the unpacked contents; None if it differs."""
    with path.open("rb") as file:
        packed = source.unpacked and file.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=file) if packed else file
        try:
            content = stream.read(source.size + 1)  # a bound, as a file may unpack to far more
        except (gzip.BadGzipFile, EOFError, zlib.error):
            return None
    return content if hashlib.sha256(content).hexdigest().startswith(source.sha256) else None


def _download(source: Source, path: Path, read: Callable[[Path, Source], T | None]) -> T:
    """Download to `path` through a `.part` file, which stays if the transfer stops; return what `read` returns."""
    import requests
    import urllib3

    part = path.with_name(f"{path.name}.part")
    by_hand = f"or put the file into {path.parent} by hand (another data folder: ALEXNET_DATA, or in training --data-root)"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("ab") as file:
            _transfer(source, file)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        answer = getattr(error, "response", None)
        reason = type(error).__name__ if answer is None else f"status {answer.status_code}"
        stopped = f"{source.url}: the download stopped after {part.stat().st_size:,} bytes ({reason})"
        raise DataError(f"{stopped}; repeat the command to resume it, {by_hand}") from error
    result = read(part, source)
    if result is None:
        part.unlink()
        raise DataError(f"{source.url}: wrong checksum, so the file was removed; repeat the command to try again, {by_hand}")
    rename(part, path)
    return result


def _transfer(source: Source, file: IO[bytes]) -> None:
    """Append the missing bytes to `file`, or rewrite it if the server does not support ranges."""
    import requests

    start = file.tell()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    say(f"downloading {source.url} to {file.name}" + (f" from byte {start:,}" if start else ""))
    with requests.get(source.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if start and response.status_code == 416:  # nothing left to send: the checksum decides whether the file is complete
            return
        response.raise_for_status()
        if response.status_code != 206:
            start = file.truncate(0)
        length = response.raw.length_remaining
        for _ in track(_save(response.raw, file, source.size + MB - start), "Downloading, in MB", length and -(-length // MB)):
            pass


def _save(body: Any, file: IO[bytes], limit: int) -> Iterator[None]:
    """Append a response's `body` to `file`, about `limit` bytes at most; yield after each megabyte, for the progress bar."""
    done = 0
    for piece in body.stream(2**16, decode_content=False):  # some servers declare a .gz file as an encoding
        file.write(piece)
        done += len(piece)
        if done > limit:
            return
        if done // MB > (done - len(piece)) // MB:
            yield
