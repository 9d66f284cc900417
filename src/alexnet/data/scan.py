"""Finding files: recursively, sorted, hidden ones and runs passed over."""

from __future__ import annotations

import os
from pathlib import Path

from alexnet.errors import format_names
from alexnet.progress import say

# Files that are together in a folder which this program has made: a run, an index, a study.
OURS = (("recipe.toml", "environment.json"), ("search.json",), ("study.json",))


def is_alexnet_folder(folder: Path) -> bool:
    """Whether this program has made a folder."""
    return any(all((folder / name).is_file() for name in names) for names in OURS)


def visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files in `folder`, each sorted by name, without those whose name begins with a dot."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return [e for e in entries if e.is_dir()], [e for e in entries if not e.is_dir()]


def visible_folders(folder: Path) -> list[Path]:
    """Return `folder` and all folders under it, sorted; symbolic links to folders are followed, each folder once.

    Runs, indices and studies in it are passed over, and told.
    """
    result: list[Path] = []
    ours: list[Path] = []
    seen: set[str] = set()

    def walk(here: Path) -> None:
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back up
            return
        seen.add(real)
        result.append(here)
        for inner in visible(here)[0]:
            if is_alexnet_folder(inner):
                ours.append(inner)
            else:
                walk(inner)

    walk(folder)
    if ours:
        say(f"passed over {format_names(ours)}: made by alexnet")
    return result


def visible_files(folder: Path) -> list[Path]:
    """Return all files in the folders of `visible_folders`, sorted."""
    return sorted(file for here in visible_folders(folder) for file in visible(here)[1])
