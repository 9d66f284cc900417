"""Files: atomic writes, protection of the user's own files, hashes, locks, and paths as users type them."""

import errno
import hashlib
import json
import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors

from alexnet.errors import RunError, error_reason

MADE_BY = "alexnet"
ZIP_COMMENT = b"made by alexnet"
# How a file of each format begins, and what its first or last bytes hold if alexnet made it.
MARKS = (
    (b"\x89PNG", b"tEXtSoftware\0alexnet"),
    (b"<?xml", b"<dc:title>alexnet</dc:title>"),  # SVG: its creator
    (b"<?xml", b'<net name="alexnet"'),  # OpenVINO
    (b"<!doctype html>", b'<meta name="generator" content="alexnet">'),
    (b"\x08", b"\x12\x07alexnet"),  # ONNX: its producer, after the version of its format
    (b"PK", ZIP_COMMENT),  # a NumPy archive, or weights for torchvision
    (b"\x89HDF", ZIP_COMMENT),  # weights for Keras, or features
    (b"MATLAB 5.0", ZIP_COMMENT),
    (b"", b'\0\0\0\0{"__metadata__":{"made_by":"alexnet"}'),  # safetensors: after the length of this header
    (b"---\nlicense: ", b"<!-- made by alexnet -->"),  # the card of an export
    (b"{", b'"compared_on": '),  # the JSON file beside an exported model
)
HEAD, TAIL = 4096, 64  # bytes
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
STALE_AFTER = 24 * 3600.0  # seconds after which another machine's temporary file is removed

Writer = Callable[[Path], object]  # writes to the path that it is given


# Paths


def expand_user(name: str | os.PathLike[str]) -> Path:
    """Return a path with a leading `~` or `~user` expanded to the home folder.

    The path is unchanged if there is a file of that name, or no such home folder: `~$report.png` is a valid file name.
    """
    path = Path(name)
    expanded = Path(os.path.expanduser(path))  # unlike Path.expanduser, no error if there is no such user
    if expanded == path or os.path.lexists(path):
        return path
    return expanded if os.path.isdir(os.path.expanduser(path.parts[0])) else path


def user_cache() -> Path:
    """Return this program's folder in the user's cache; it may not exist yet."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
        return Path(local, "alexnet", "alexnet", "Cache")
    chosen, system = os.environ.get("XDG_CACHE_HOME", ""), "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(chosen if os.path.isabs(chosen) else os.path.expanduser(system), "alexnet")


def local_path(data: str | Path) -> Path:
    """Return the absolute path of a dataset; its last part is always a name, even for `.` and `photos/..`."""
    path = expand_user(data).absolute()
    return path.resolve() if ".." in path.parts else path


def temporary_name(path: Path) -> Path:
    """Return this process's temporary name for `path`, in the same folder so that it can be renamed."""
    return path.with_name(f"{path.name}.{HOST}-{os.getpid()}.part")


def remove_leftovers(folder: Path, pattern: str = "*.part") -> None:
    """Remove temporary files of killed processes: this machine's at once, those of others after a day."""
    import psutil  # slow to import, as filelock is, and not needed by `alexnet --help`

    for file in folder.glob(pattern):
        writer = file.suffixes[-2][1:] if len(file.suffixes) > 1 else ""
        host, _, process = writer.rpartition("-")
        ended = host == HOST and not (process.isdecimal() and psutil.pid_exists(int(process)))
        try:
            if ended or time.time() - file.stat().st_mtime > STALE_AFTER:
                shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        except OSError:  # removed by another process, or no permission
            continue


# Files inside run folders and caches: existing ones are replaced


def write(path: Path, writer: Writer) -> None:
    """Write a file atomically: `writer` writes a temporary file, which is flushed to disk and renamed to `path`.

    If that fails, with a RunError, an existing file is unchanged.
    """
    with _written(path, temporary_name(path), writer) as part:
        rename(part, path)


def rename(part: Path, path: Path) -> None:
    """Rename a file or folder whose content is on disk, and flush the rename to disk too, if the system can open folders."""
    part.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    r"""Write `text` atomically as UTF-8; bytes of file names that are not UTF-8 are written as \udc80 to \udcff."""
    write(path, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n"))


def write_json(path: Path, content: Any) -> None:
    """Write `content` atomically as indented JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error_reason(error)}") from error
    if not isinstance(result, dict):
        raise RunError(f"{path} is not a JSON object, so alexnet did not write it")
    return result


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def hold_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path`, or raise RunError(`busy`); the system releases it if the process dies."""
    from filelock import FileLock, Timeout

    with writing(path):
        try:
            lock = FileLock(path, timeout=0).acquire()
        except Timeout as error:
            raise RunError(busy) from error
    with lock:
        yield


# Files at a path that the user chose: a file that alexnet did not make is replaced only with `overwrite`


def refuse_overwrite(path: Path, overwrite: bool = False) -> None:
    """Raise RunError unless a file may be written to `path`; call this before computing what is written there."""
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder; name a file")
    if not path.is_symlink() and not path.is_file():  # writing to a pipe would block
        raise RunError(f"cannot write {path}: it exists and is not a regular file; give another name")
    if not overwrite and (path.is_symlink() or not made_by_alexnet(path)):
        raise RunError(f"{path} already exists and was not made by alexnet: give another name, or --overwrite")


def made_by_alexnet(path: Path) -> bool:
    """Return whether a file contains one of `MARKS`; False if it cannot be read."""
    if not path.is_file():  # reading a pipe would block
        return False
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(max(0, path.stat().st_size - TAIL))
            ends = head, file.read(TAIL)
    except OSError:
        return False
    return any(head.startswith(start) and any(mark in end for end in ends) for start, mark in MARKS)


def write_output(path: Path, writer: Writer, overwrite: bool = False) -> None:
    """Write a file, which must contain one of `MARKS`, atomically to a path that the user chose."""
    refuse_overwrite(path, overwrite)
    with _written(path, path.with_name(f".{secrets.token_hex(8)}.part"), writer) as part:
        try:
            os.link(part, path)  # unlike a rename, this never replaces a file
        except OSError:  # there is one, perhaps created in the meantime, or this file system has no hard links
            refuse_overwrite(path, overwrite)
            part.replace(path)


@contextmanager
def _written(path: Path, part: Path, writer: Writer) -> Iterator[Path]:
    """Let `writer` write the temporary file `part` of `path`, and flush it to disk; remove it after the block."""
    with writing(path):
        try:
            part.touch()
            mode = part.stat().st_mode
            writer(part)
            part.chmod(mode)  # safetensors creates files that only their owner can read
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            yield part
        finally:
            with suppress(OSError):
                part.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an error raised in the block to one that says why `path` cannot be written, with the free disk space."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        if not path.parent.exists():
            raise RunError(f"cannot write {path}: there is no folder {path.parent}") from error
        free = shutil.disk_usage(path.parent).free / 1e9
        raise RunError(f"cannot write {path}: {error_reason(error)} ({free:.1f} GB free)") from error


class DiskFull(OSError):
    """What is to be written does not fit onto the disk."""


def is_full(error: OSError | RunError) -> bool:
    """Return whether a file could not be written for want of space."""
    cause = error.__cause__ if isinstance(error, RunError) else error
    return isinstance(cause, DiskFull) or getattr(cause, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", -1))


def cache_remedy(error: OSError | RunError) -> str:
    """Return what a user can do about a file of a cache that could not be written, or read."""
    other = "set the environment variable ALEXNET_CACHE to another folder"
    return f"free some space there, or {other}" if is_full(error) else f"{other}, which you may write to"
