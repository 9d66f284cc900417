"""Files on servers and in object stores, such as `https://` and `s3://`, through fsspec."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from alexnet.errors import AlexNetError, DataError, printable, truncate
from alexnet.progress import say

TRIES = 4
WAIT = 1.0  # seconds before the second try; twice as long before each further one
BLOCK = 1 << 20  # bytes to read ahead, when a file is read from its start

TAGS = ("ETag", "etag", "Content-MD5", "Digest", "Last-Modified", "LastModified", "last_modified", "mtime", "updated")

T = TypeVar("T")


def is_remote(name: str) -> bool:
    """Return whether a name is a URL of something else than a local file."""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme.isalnum() and len(scheme) > 1 and scheme != "file"


def read(url: str, start: int = 0, size: int | None = None) -> bytes:
    """Return a part of a file; without `size`, all of it from `start` on."""
    end = None if size is None else start + size
    return bytes(_tried(url, lambda files, path: files.cat_file(path, start=start, end=end)))


def fact(url: str) -> str:
    """Return what changes when the file does: its size, and its checksum or its time of change, as far as the store says."""
    facts = _tried(url, lambda files, path: files.info(path))
    tags = [str(facts[key]) for key in TAGS if facts.get(key) is not None]
    return "\0".join((str(facts.get("size")), *tags))


def opened(url: str) -> Any:
    """Open a file to be read from its start; seeking is possible."""
    return _tried(url, lambda files, path: files.open(path, "rb", block_size=BLOCK))


def exists(url: str) -> bool:
    """Return whether there is such a file.

    Raises:
        DataError: the server does not answer, or with another error than that there is none.
    """
    try:
        return bool(_tried(url, lambda files, path: files.info(path)))
    except DataError as error:
        if _is_missing(error.__cause__):
            return False
        raise


def _status(error: BaseException | None) -> int:
    """Return the status of an HTTP server's answer, 0 without any."""
    return int(getattr(error, "status", 0) or getattr(getattr(error, "__cause__", None), "status", 0))


def _is_missing(error: BaseException | None) -> bool:
    """Return whether an error says that there is no file; fsspec says so of a server that does not answer, too."""
    cause = getattr(error, "__cause__", None)
    of_network = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    answered = _status(error) or isinstance(cause, FileNotFoundError) or not of_network
    return isinstance(error, FileNotFoundError) and bool(answered) and _status(error) in (0, 404, 410)


def _is_final(error: BaseException) -> bool:
    """Return whether it is no use to try again: the file is missing, or the server refuses to send it."""
    return _is_missing(error) or (400 <= _status(error) < 500 and _status(error) not in (408, 429))


def _tried(url: str, work: Callable[[Any, str], T]) -> T:
    """Return what `work` returns for the file system and the path of a URL, after a few tries."""
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        reason = truncate(printable(" ".join(str(error).split())), 200)
        raise AlexNetError(f"{truncate(url)} cannot be opened: {reason}") from error
    for attempt in range(TRIES):
        try:
            return work(files, path)
        except Exception as error:  # each store raises types of its own
            told = (isinstance(error, FileNotFoundError) and error.__cause__) or error  # else it is the URL again
            reason = truncate(printable(" ".join(str(told).split()) or type(told).__name__), 200)
            if attempt == TRIES - 1 or _is_final(error):
                raise DataError(f"{truncate(url)} cannot be read: {reason}") from error
            say(f"{truncate(url)} cannot be read: {reason}; trying again")
            time.sleep(WAIT * 2**attempt)
    raise AssertionError
