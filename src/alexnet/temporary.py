"""Temporary files and folders beside those of others: whose they are, and when they are nobody's any more."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from pathlib import Path

import psutil

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
SECONDS = 24 * 3600.0  # after which a file of another machine is stale


def beside(place: Path) -> Path:
    """Return the name of this process's temporary file for `place`: in the same folder, so that it can be renamed."""
    return place.with_suffix(f".{HOST}-{os.getpid()}.part")


def clear(folder: Path, pattern: str = "*.part") -> None:
    """Remove what processes of this machine that were killed, or others long ago, have left; not what is being written."""
    for file in folder.glob(pattern):
        writer = file.suffixes[-2][1:] if len(file.suffixes) > 1 else ""
        host, _, process = writer.rpartition("-")
        ended = host == HOST and not (process.isdecimal() and psutil.pid_exists(int(process)))
        try:
            if ended or time.time() - file.stat().st_mtime > SECONDS:
                shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        except OSError:  # another process was faster, or may do what this one may not
            continue
