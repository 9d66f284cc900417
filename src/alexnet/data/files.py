"""Finding files: recursively, sorted, hidden ones passed over."""

from __future__ import annotations

import os
from pathlib import Path


def visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files in `folder`, each sorted by name, without those whose name begins with a dot."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return [e for e in entries if e.is_dir()], [e for e in entries if not e.is_dir()]


def visible_folders(folder: Path) -> list[Path]:
    """Return `folder` and all folders under it, sorted; symbolic links to folders are followed, each folder once."""
    found: list[Path] = []
    seen: set[str] = set()

    def walk(here: Path) -> None:
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back up
            return
        seen.add(real)
        found.append(here)
        for inner in visible(here)[0]:
            walk(inner)

    walk(folder)
    return found


def visible_files(folder: Path) -> list[Path]:
    """Return all files in the folders of `visible_folders`, sorted."""
    return sorted(file for here in visible_folders(folder) for file in visible(here)[1])
