"""Name the classes of a table whose labels are numbers: by a list, or by `labels.txt` or `classes.txt` beside it."""

import re
from collections.abc import Iterable
from pathlib import Path

from alexnet.data.labels import normalize_label
from alexnet.data.table import Row
from alexnet.errors import DataError, error_reason, format_names, truncate
from alexnet.files import local_path
from alexnet.progress import say

FILES = ("labels.txt", "classes.txt")
NUMBERED = re.compile(r"(\d{1,9})(?:\s*[:;,\t]\s*|\s+)(.+)")  # `1 001.Albatross`, `0: cat`
NUMBER = re.compile(r"\d{1,9}")
FILE_NAME = re.compile(r"\.(jpe?g|png|gif|bmp|tiff?|webp)\b", re.IGNORECASE)


def name_labels(rows: list[Row], given: str | None, folders: Iterable[Path]) -> list[Row]:
    """Return `rows` with the names of their label numbers, if `given` (A,B,C or a file) or a file in `folders` has names.

    Without any, and if the labels are text, the rows are unchanged. A file of `FILES` that does not suit the table is not used;
    a given one is an error.
    """
    labels = {row.label for row in rows}
    are_numbers = bool(labels) and all(map(NUMBER.fullmatch, labels))
    if given is not None:
        names = _given(given)
        if labels and not are_numbers and labels.isdisjoint(names.values()):
            raise DataError(f"label names are for numbers, but there are the labels {format_names(sorted(labels), 3)}")
        _check_range(labels if are_numbers else set(), names, truncate(given))
    else:
        names = _beside(labels, folders) if are_numbers else {}
    return [row._replace(label=names[int(row.label)]) for row in rows] if names and are_numbers else rows


def _beside(labels: set[str], folders: Iterable[Path]) -> dict[int, str]:
    """Return the names in the first of `FILES` in `folders`; empty if there is none, or if it does not suit the labels."""
    file = next((folder / name for folder in folders for name in FILES if (folder / name).is_file()), None)
    if file is None:
        return {}
    try:
        names = _read(file)
        if listed := next(filter(FILE_NAME.search, names.values()), ""):
            raise DataError(f"{file} lists files, such as {truncate(listed)!r}")
        _check_range(labels, names, str(file))
    except DataError as error:
        say(f"{error}; so the classes have no names but their numbers")
        return {}
    say(f"class names are those in {file}")
    return names


def _check_range(labels: set[str], names: dict[int, str], source: str) -> None:
    if unnamed := sorted(int(label) for label in labels if int(label) not in names):
        has = f"{min(names)} to {max(names)}" if names else "no label"
        hint = "; to number from 1, begin the lines of a file with the numbers, as `1 cat`" if unnamed == [len(names)] else ""
        raise DataError(f"{source} has names for {has}, but there is the label {unnamed[0]}{hint}")


def _given(text: str) -> dict[int, str]:
    path = local_path(text)
    if path.is_file():
        return _read(path)
    if "," not in text:
        raise DataError(f"no file {truncate(text)!r} of label names: give one with a name in each line, or the names as A,B,C")
    return _checked("the label names", dict(enumerate(normalize_label(name) for name in text.split(","))))


def _read(path: Path) -> dict[int, str]:
    """Return the names in a file by number: a name in each line, the first for 0, or lines such as `1 cat`."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
        lines = text.split("\n") if text else []  # a label may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the label names in {path}: {error_reason(error)}") from error
    numbered = [match for line in lines if (match := NUMBERED.fullmatch(line.strip()))]
    numbers = [int(match[1]) for match in numbered]
    if lines and len(numbered) == len(lines) and numbers == list(range(numbers[0], numbers[0] + len(lines))):
        return _checked(str(path), {number: normalize_label(match[2]) for number, match in zip(numbers, numbered, strict=True)})
    return _checked(str(path), dict(enumerate(map(normalize_label, lines))))


def _checked(source: str, names: dict[int, str]) -> dict[int, str]:
    seen: dict[str, int] = {}
    for number, name in names.items():
        if not name:
            raise DataError(f"{source}: the name of label {number} is empty")
        if (other := seen.setdefault(name, number)) != number:
            raise DataError(f"{source}: labels {other} and {number} have the same name, {truncate(name)!r}")
    return names
