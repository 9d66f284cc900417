"""Writing where a user's own files may be: none is replaced but what this program has made, unless `overwrite` is said."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from alexnet.errors import RunError, reason_of

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


def refuse(place: Path, overwrite: bool = False) -> None:
    """Raise unless a file may be written to `place`; to be called before the work that leads to it.

    Raises:
        RunError: it is a folder or a device; or a file or link that this program has not made, without `overwrite`.
    """
    if not os.path.lexists(place):
        return
    if place.is_dir():
        raise RunError(f"cannot write {place}: it is a folder; name a file")
    if not place.is_symlink() and not place.is_file():  # a pipe would wait, a device swallow it
        raise RunError(f"cannot write {place}: it is there and is no file; give another name")
    if not overwrite and (place.is_symlink() or not made_here(place)):
        raise RunError(f"{place} is there already and was not made by alexnet: give another --out, or --overwrite")


def made_here(place: Path) -> bool:
    """Whether a file bears one of `MARKS`; False for what cannot be read."""
    if not place.is_file():  # a pipe would wait
        return False
    try:
        with place.open("rb") as file:
            head = file.read(HEAD)
            file.seek(max(0, place.stat().st_size - TAIL))
            ends = head, file.read(TAIL)
    except OSError:
        return False
    return any(head.startswith(start) and any(mark in end for end in ends) for start, mark in MARKS)


def write(place: Path, writer: Callable[[Path], object], overwrite: bool = False) -> None:
    """Let `writer` write a file, which bears one of `MARKS`, and put it to `place`, whole or not at all.

    Raises:
        RunError: as `refuse`; the disk is full or the folder cannot be written. What was at `place` is unchanged.
    """
    refuse(place, overwrite)
    part = place.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.touch(exist_ok=False)
        fill(part, writer)
        _publish(part, place, overwrite)
    except OSError as error:
        raise unwritable(place, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _publish(part: Path, place: Path, overwrite: bool) -> None:
    if not os.path.lexists(place):
        try:
            os.link(part, place)  # unlike a renaming it replaces nothing that has come meanwhile
            return
        except OSError:  # something has come, or this disk has no hard links
            pass
    refuse(place, overwrite)
    part.replace(place)


def fill(part: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` write the file `part`, which is there and keeps its permissions, and flush it to disk."""
    mode = part.stat().st_mode
    writer(part)
    part.chmod(mode)  # safetensors makes files that only their owner can read
    with part.open("rb+") as file:
        os.fsync(file.fileno())


def unwritable(place: Path, error: Exception) -> RunError:
    """Return the error that says why `place` cannot be written, and how much room there is."""
    if not place.parent.exists():
        return RunError(f"cannot write {place}: there is no folder {place.parent}")
    free = shutil.disk_usage(place.parent).free / 1e9
    return RunError(f"cannot write {place}: {reason_of(error)} ({free:.1f} GB free)")
