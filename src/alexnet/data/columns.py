"""Which columns of a CSV or Parquet file say what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet.errors import DataError, format_names

# The first name is ours and goes first; the others are what spreadsheets, Kaggle and Hugging Face have in its place.
COLUMNS = {
    "image": ("image", "images", "img", "image_path", "image_file", "image_name", "filename", "file", "filepath", "path"),
    "label": ("label", "labels", "class", "classes", "class_name", "category", "target", "fine_label"),
    "split": ("split", "subset", "set", "partition", "usage", "phase", "data_split", "split_name"),
}


class Record(NamedTuple):
    """A row as its file has it; `where` is its place, such as `line 5`, and None a value that is not there."""

    where: str
    image: str | None
    label: str | None
    split: str | None


def find_columns(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Return the position of `image`, of `label` and, where there is one, of `split` among a file's columns.

    Case, blanks and quotes around a name do not count; `file name`, `file_name` and `filename` are the same.

    Raises:
        DataError: a column is missing, or it may be one of several.
    """
    plain = [_plain(name) for name in names]
    result: dict[str, int] = {}
    for column, known in COLUMNS.items():
        ours = [i for i, name in enumerate(plain) if name == column]
        places = ours or [i for i, name in enumerate(plain) if name in map(_plain, known)]
        if len(places) > 1:
            raise DataError(
                f"{path} has several columns that may be {column!r}: {format_names(names[i] for i in places)}; "
                f"call one of them {column!r}, or leave the others out"
            )
        if places:
            result[column] = places[0]
        elif column != "split":
            raise DataError(
                f"{path} has no column {column!r}: it has {format_names(names) or 'no columns'}; "
                "the columns' names, such as image and label, come first"
            )
    return result


def _plain(name: str) -> str:
    return name.strip(" \t\"'").casefold().replace("_", "").replace(" ", "").replace("-", "")
