"""Files: written whole or not at all, never over a user's own; their hashes, locks, and names as people type them."""

from __future__ import annotations

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
# How a file of each kind begins, and what its first or last bytes hold if this program made it.
MARKS = (
    (b"\x89PNG", b"tEXtSoftware\0alexnet"),
    (b"<?xml", b"<dc:title>alexnet</dc:title>"),  # SVG: its creator
    (b"\x08", b"\x12\x07alexnet"),  # ONNX: its producer, after the version of its format
    (b"PK", ZIP_COMMENT),  # a NumPy archive
    (b"{", b'"compared_on": '),  # what an export was compared on, as JSON
)
HEAD, TAIL = 4096, 64  # bytes
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
STALE_AFTER = 24 * 3600.0  # seconds; then another machine's temporary file is removed

Writer = Callable[[Path], object]  # writes the file that it is given


# Names


def expanded(name: str | os.PathLike[str]) -> Path:
    """Return the path of a name, with `~` and `~user` at its front as home folders.

    Only where there is such a home, and no file of that very name: `~$report.png` is a file's name, and stays one.
    """
    path = Path(name)
    first = path.parts[0] if path.parts else ""
    if not first.startswith("~") or os.path.lexists(path):
        return path
    try:
        home = Path(first).expanduser()
    except RuntimeError:  # no such user, or a user without a home
        return path
    return home.joinpath(*path.parts[1:]) if home.is_dir() else path


def user_cache() -> Path:
    """Return this program's folder among the user's caches, which need not exist."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
        return Path(local, "alexnet", "alexnet", "Cache")
    chosen, system = os.environ.get("XDG_CACHE_HOME", ""), "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(chosen if os.path.isabs(chosen) else os.path.expanduser(system), "alexnet")


def local_path(data: str | Path) -> Path:
    """Return where a dataset lies on a disk, absolute and with a name of its own, for `.` and `photos/..` too."""
    path = expanded(data).absolute()
    return path.resolve() if ".." in path.parts else path


def temporary_name(path: Path) -> Path:
    """Return the name of this process's temporary file for `path`: in the same folder, so that it can be renamed."""
    return path.with_name(f"{path.name}.{HOST}-{os.getpid()}.part")


def remove_leftovers(folder: Path, pattern: str = "*.part") -> None:
    """Remove temporary files of killed processes: those of this machine, and of others after a day."""
    import psutil  # with filelock, a tenth of a second that `alexnet --help` need not wait

    for file in folder.glob(pattern):
        writer = file.suffixes[-2][1:] if len(file.suffixes) > 1 else ""
        host, _, process = writer.rpartition("-")
        ended = host == HOST and not (process.isdecimal() and psutil.pid_exists(int(process)))
        try:
            if ended or time.time() - file.stat().st_mtime > STALE_AFTER:
                shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        except OSError:  # another process was faster, or may do what this one may not
            continue


# Files of our own: whatever was there is replaced


def write(path: Path, writer: Writer) -> None:
    """Let `writer` write a file beside `path`, flush it to disk, and rename it to `path`: whatever was there goes.

    Raises:
        RunError: the disk is full or the folder cannot be written; what was at `path` is unchanged.
    """
    part = temporary_name(path)
    try:
        part.touch()
        _fill(part, writer)
        rename(part, path)
    except (OSError, safetensors.SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def rename(part: Path, path: Path) -> None:
    """Rename a file or folder that was flushed, and flush the renaming."""
    part.replace(path)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    r"""Write `text` as UTF-8, whole or not at all; bytes of a file's name that are no UTF-8 become \udc80 to \udcff."""
    write(path, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n"))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises:
        RunError: it cannot be read, or holds something else.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error_reason(error)}") from error
    if not isinstance(result, dict):
        raise RunError(f"{path} is not what alexnet writes")
    return result


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush renames in a folder to disk, where the system lets folders be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path`, which ends with the process however it ends.

    Raises:
        RunError: another process holds it, with `busy` as the message; or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(busy) from error
    except OSError as error:
        raise RunError(f"cannot write {path}: {error_reason(error)}") from error
    try:
        yield
    finally:
        lock.release()


# Files where a user's own may be: none is replaced but what this program has made, unless `overwrite` is said


def refuse_overwrite(path: Path, overwrite: bool = False) -> None:
    """Raise unless a file may be written to `path`; to be called before the work that leads to it.

    Raises:
        RunError: it is a folder or a device; or a file or link that this program has not made, without `overwrite`.
    """
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder; name a file")
    if not path.is_symlink() and not path.is_file():  # a pipe would wait, a device swallow it
        raise RunError(f"cannot write {path}: it is there and is no file; give another name")
    if not overwrite and (path.is_symlink() or not made_here(path)):
        raise RunError(f"{path} is there already and was not made by alexnet: give another --out, or --overwrite")


def made_here(path: Path) -> bool:
    """Whether a file bears one of `MARKS`; False for what cannot be read."""
    if not path.is_file():  # a pipe would wait
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
    """Let `writer` write a file, which bears one of `MARKS`, and put it to `path`, whole or not at all.

    Raises:
        RunError: as `refuse_overwrite`; the disk is full or the folder cannot be written. What was at `path` is unchanged.
    """
    refuse_overwrite(path, overwrite)
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.touch(exist_ok=False)
        _fill(part, writer)
        _publish(part, path, overwrite)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _publish(part: Path, path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        try:
            os.link(part, path)  # unlike a renaming it replaces nothing that has come meanwhile
            return
        except OSError:  # something has come, or this disk has no hard links
            pass
    refuse_overwrite(path, overwrite)
    part.replace(path)


def _fill(part: Path, writer: Writer) -> None:
    """Let `writer` write the file `part`, which is there and keeps its permissions, and flush it to disk."""
    mode = part.stat().st_mode
    writer(part)
    part.chmod(mode)  # safetensors makes files that only their owner can read
    with part.open("rb+") as file:
        os.fsync(file.fileno())


def unwritable(path: Path, error: Exception) -> RunError:
    """Return the error that says why `path` cannot be written, and how much room there is."""
    if not path.parent.exists():
        return RunError(f"cannot write {path}: there is no folder {path.parent}")
    free = shutil.disk_usage(path.parent).free / 1e9
    return RunError(f"cannot write {path}: {error_reason(error)} ({free:.1f} GB free)")
