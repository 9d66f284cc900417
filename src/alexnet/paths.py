"""Names of files as people type them."""

from __future__ import annotations

import os
from pathlib import Path


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


def local_path(data: str | Path) -> Path:
    """Return where a dataset lies on a disk, absolute and with a name of its own, for `.` and `photos/..` too."""
    path = expanded(data).absolute()
    return path.resolve() if ".." in path.parts else path
