"""The journal of a folder of sorted images: what was put where, written before it is done.

A line of JSON for each image; after each batch, once all of it is done, the line `{"done": true}`. So a process that is killed
leaves at most one batch to finish, and everything in the folder that is ours is named in its journal.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from alexnet.errors import RunError, error_reason, shell_quote
from alexnet.files import remove_leftovers, write_text, writing

How = Literal["copy", "move", "link"]
NAME = "sorted.jsonl"
DONE = '{"done": true}\n'


class Entry(NamedTuple):
    """An image and the place that it was given: two absolute paths, and the image's size and time of change before."""

    image: Path
    target: Path
    size: int
    mtime_ns: int

    @property
    def is_current(self) -> bool:
        """Whether the image is there and unchanged."""
        try:
            found = self.image.stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


class Journal:
    """The journal of the folder `folder`.

    Attributes:
        how: what is done with each image.
        entries: all images, in order.
        pending: those of the last batch, if it may be unfinished.
    """

    def __init__(self, folder: Path, how: How, created: bool) -> None:
        self.folder, self.how, self.created = folder, how, created
        self.entries: list[Entry] = []
        self.pending: list[Entry] = []

    @property
    def path(self) -> Path:
        """The journal's file."""
        return self.folder / NAME

    def add(self, entries: Sequence[Entry]) -> None:
        """Write the entries of a batch to disk, before anything is done."""
        self._append("".join(map(self._line, entries)))
        self.entries += entries
        self.pending = [*entries]

    def finish(self) -> None:
        """Record that the last batch is done."""
        self._append(DONE)
        self.pending = []

    def replace(self, entries: Iterable[Entry]) -> None:
        """Replace all entries."""
        self.entries = [*entries]
        write_text(self.path, self._header() + "".join(map(self._line, self.entries)) + DONE)

    def _append(self, text: str) -> None:
        with writing(self.path), self.path.open("a", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _header(self) -> str:
        return json.dumps({"version": 1, "how": self.how, "created": self.created}) + "\n"

    def _line(self, entry: Entry) -> str:
        image, target = str(entry.image), str(entry.target.relative_to(self.folder))
        return json.dumps({"image": image, "target": target, "size": entry.size, "mtime_ns": entry.mtime_ns}) + "\n"


def create(folder: Path, how: How) -> Journal:
    """Start the journal of a folder that is new or empty."""
    created = not folder.exists()
    remove_leftovers(folder)  # of a call that was killed here
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not empty: name another folder to sort into")
    with writing(folder / NAME):
        folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder, how, created)
    journal.replace(())
    return journal


def read(folder: Path) -> Journal:
    """Read the journal of a folder; a last line that was cut off by a kill is removed."""
    path = folder / NAME
    if not path.is_file():
        raise RunError(
            f"{folder} holds no sorted images: it has no {NAME} (alexnet predict RUN IMAGE… --sort FOLDER makes one)"
        )
    try:
        text = path.read_bytes().decode("ascii")
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
        header = json.loads(lines[0])
        journal = Journal(folder, header["how"], header["created"])
        if header["version"] != 1 or journal.how not in get_args(How):
            raise ValueError("it was written by another version of alexnet")
        for line in lines[1:]:
            if line == DONE:
                journal.pending = []
                continue
            row = json.loads(line)
            entry = Entry(Path(row["image"]), folder / row["target"], int(row["size"]), int(row["mtime_ns"]))
            if Path(row["target"]).is_absolute() or ".." in Path(row["target"]).parts or not entry.image.is_absolute():
                raise ValueError(f"its target {row['target']!r} is not in the folder")
            journal.entries.append(entry)
            journal.pending.append(entry)
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        reason = error_reason(error) if isinstance(error, OSError | ValueError) else "it is damaged"
        raise RunError(f"{shell_quote(path)} cannot be used: {reason}; nothing was changed") from error
    if not text.endswith("\n"):
        write_text(path, "".join(lines))
    return journal
