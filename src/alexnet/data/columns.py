"""Find the columns `image`, `label`, `split` and `group` of a table: a CSV, Parquet or JSON lines file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet.errors import DataError, format_names
from alexnet.recipe import Data

# Names that are recognized, in tiers: a name counts only if the table has none of an earlier tier. They are common in
# spreadsheets, on Kaggle and on Hugging Face.
COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "image": (
        ("image",),
        ("images", "img", "image_path", "image_file", "image_name", "filename", "file", "filepath", "path"),
        ("image_filename", "img_path", "img_name", "img_file"),
    ),
    "label": (
        ("label",),
        ("labels", "class", "classes", "class_name", "category", "target", "fine_label"),
        ("label_name", "class_label", "category_name"),
    ),
    "split": (("split",), ("subset", "set", "partition", "usage", "phase", "data_split", "split_name")),
    "group": (("group",),),  # other names, such as `patient`, by option only, as they decide what is tested on what
}
REQUIRED = ("image", "label")


class ColumnError(DataError):
    """A table lacks a column, or has several that may be it."""


class Record(NamedTuple):
    """A row of a file; `where` is its position, such as `line 5`; missing values are None."""

    where: str
    image: str | None
    label: str | None
    split: str | None = None
    group: str | None = None


def find_columns(path: Path, names: Sequence[str], settings: Data) -> dict[str, int]:
    """Return the positions of the columns `image` and `label`, and of `split` and `group` if there are such.

    A column that `settings` name is taken; otherwise, one of the names in `COLUMNS`. Case, spaces and quotes are ignored;
    `file name`, `file_name` and `filename` are the same.
    """
    result = {column: _named(path, names, column, name) for column, name in settings.columns.items()}
    taken = set(result.values())
    normalized = ["" if i in taken else _normalize(name) for i, name in enumerate(names)]
    for column in (column for column in COLUMNS if column not in result):
        tiers = ([i for i, name in enumerate(normalized) if name in map(_normalize, tier)] for tier in COLUMNS[column])
        positions = next(filter(None, tiers), [])
        if len(positions) > 1:
            several = format_names(names[i] for i in positions)
            advice = f"say which with {_option(column)}, or rename the others"
            raise ColumnError(f"{path} has several columns that may be {column!r}: {several}; {advice}")
        if not positions and column in REQUIRED:
            has = f"it has {format_names(names) or 'no columns'}"
            advice = f"the first line must name the columns, such as image and label; {_option(column)} says which to take"
            raise ColumnError(f"{path} has no column {column!r}: {has}; {advice}")
        if positions:
            result[column] = positions[0]
    return {column: result[column] for column in COLUMNS if column in result}


def _named(path: Path, names: Sequence[str], column: str, name: str) -> int:
    """Return the position of the column that a setting names, exactly or else up to case, spaces and quotes."""
    exact = [i for i, known in enumerate(names) if known == name]
    positions = exact or [i for i, known in enumerate(names) if _normalize(known) == _normalize(name)]
    if len(positions) == 1:
        return positions[0]
    number = f"{len(positions)} columns" if positions else "no column"
    raise ColumnError(f"{path} has {number} {name!r}, given by {_option(column)}: it has {format_names(names) or 'none'}")


def _option(column: str) -> str:
    return f"--{column}-column"


def _normalize(name: str) -> str:
    return re.sub("[ _-]", "", name.strip(" \t\"'").casefold())
