"""Find the columns `image`, `label` and `split` of a CSV or Parquet file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet.errors import DataError, format_names

# The first name takes precedence; the others are common in spreadsheets, on Kaggle and on Hugging Face.
COLUMNS = {
    "image": ("image", "images", "img", "image_path", "image_file", "image_name", "filename", "file", "filepath", "path"),
    "label": ("label", "labels", "class", "classes", "class_name", "category", "target", "fine_label"),
    "split": ("split", "subset", "set", "partition", "usage", "phase", "data_split", "split_name"),
}


class Record(NamedTuple):
    """A row of a file; `where` is its position, such as `line 5`; missing values are None."""

    where: str
    image: str | None
    label: str | None
    split: str | None


def find_columns(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Return the positions of the columns `image`, `label` and, if there is one, `split`.

    Case, spaces and quotes are ignored; `file name`, `file_name` and `filename` are the same.
    """
    normalized = [_normalize(name) for name in names]
    result: dict[str, int] = {}
    for column, known in COLUMNS.items():
        spellings = set(map(_normalize, known))
        exact = [i for i, name in enumerate(normalized) if name == column]
        positions = exact or [i for i, name in enumerate(normalized) if name in spellings]
        if len(positions) > 1:
            several = format_names(names[i] for i in positions)
            advice = f"call one of them {column!r}, or remove the others"
            raise DataError(f"{path} has several columns that may be {column!r}: {several}; {advice}")
        if not positions and column != "split":
            advice = "the first line must name the columns, such as image and label"
            raise DataError(f"{path} has no column {column!r}: it has {format_names(names) or 'no columns'}; {advice}")
        if positions:
            result[column] = positions[0]
    return result


def _normalize(name: str) -> str:
    return re.sub("[ _-]", "", name.strip(" \t\"'").casefold())
