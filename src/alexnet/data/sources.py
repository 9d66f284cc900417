"""Where images come from: a built-in dataset, a folder, or a CSV or Parquet file; all become a `Table`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet.data import builtin
from alexnet.data.files import visible, visible_files
from alexnet.data.table import SPLITS, Skipped, Table
from alexnet.errors import DataError, printable, reason_of

# What people call the splits.
SPLIT_NAMES = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}

# `cat.17.jpg`, `cat_0017.png`, `cat-17.jpg`, `cat 17.jpg`, `cat (17).jpg`: a label, then a number.
LABEL_IN_NAME = re.compile(r"(?P<label>.*?[^\W\d_].*?)[\s._-]*\(?\d+\)?$")


class Row(NamedTuple):
    """An image as a source names it; `split` is empty where the source does not say."""

    image: str
    label: str
    split: str


def open_table(data: str | Path, data_root: Path | None = None) -> Table:
    """Return the table of a dataset: a built-in name, a folder, or a CSV or Parquet file.

    A folder holds class folders, or files whose names begin with the label, or `train`, `val` and `test` folders of either.
    A CSV or Parquet file has the columns `image` (relative to the file, or absolute), `label` and, if wanted, `split`.
    `data_root` is where downloads of built-in datasets lie.

    Raises:
        DataError: nothing there, fewer than two classes, columns missing, a download that failed.
    """
    if not str(data).strip():
        raise DataError("the dataset's name is empty: name a folder, a CSV or Parquet file, or a built-in dataset")
    if str(data) in builtin.NAMES:
        return builtin.load(str(data), data_root)
    path = Path(data).expanduser().absolute()
    try:
        if path.is_dir():
            rows, skipped = _read_folder(path)
            return _table(path.name, path, rows, skipped, f"{path} has")
        if path.suffix.lower() in (".csv", ".parquet") and path.is_file():
            rows, skipped = _read_listing(path)
            return _table(path.stem, path.parent, rows, skipped, f"{path} has")
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {reason_of(error)}") from error
    if path.exists():
        raise DataError(f"{path} is not a dataset: give a folder, or a CSV or Parquet file")
    known = f"not a built-in one ({', '.join(builtin.NAMES)})"
    raise DataError(f"no dataset {str(data)!r}: no such folder or file, and {known}; name the folder of your images")


def _table(name: str, root: Path, rows: list[Row], skipped: list[Skipped], subject: str) -> Table:
    labels = tuple(sorted({row.label for row in rows}))
    if len(labels) < 2:
        found = f"one class alone, {labels[0]!r}" if labels else "no labelled images"
        raise DataError(
            f"{subject} {found}: put the images of each class into a folder of its own, begin each file's name with its label "
            "and a number (cat.17.jpg), or give a CSV file with the columns image and label"
        )
    if odd := [label for label in labels if printable(label) != label]:
        raise DataError(f"{subject} the label {odd[0]!r}, which holds control characters: name it otherwise")
    position = {label: i for i, label in enumerate(labels)}
    return Table(
        name=name,
        labels=labels,
        images=[row.image for row in rows],
        targets=np.array([position[row.label] for row in rows], dtype=np.int64),
        splits=np.array([row.split for row in rows], dtype="<U5"),
        root=root,
        skipped=tuple(skipped),
    )


def _read_folder(root: Path) -> tuple[list[Row], list[Skipped]]:
    folders, files = visible(root)
    splits = {folder: SPLIT_NAMES.get(folder.name.lower(), "") for folder in folders}
    # `train` beside `bus` and `tram` is a class; only splits, and a `train` among them, is a split dataset.
    if "train" not in splits.values() or not all(splits.values()):
        return _read_labelled(root, root, "")
    rows, skipped = [], [Skipped(file.name, "not in a split's folder") for file in files]
    for folder, split in splits.items():
        # `train` alone is a dataset that is not split yet.
        inner, left_out = _read_labelled(root, folder, split if len(folders) > 1 else "")
        rows += inner
        skipped += left_out
    return rows, skipped


def _read_labelled(root: Path, folder: Path, split: str) -> tuple[list[Row], list[Skipped]]:
    """Read class folders where there are folders, else labels from file names."""
    rows: list[Row] = []
    skipped: list[Skipped] = []
    folders, files = visible(folder)
    for file in files:
        name = file.relative_to(root).as_posix()
        if folders:
            skipped.append(Skipped(name, "not in a class folder"))
        elif match := LABEL_IN_NAME.match(file.stem):
            rows.append(Row(name, match["label"], split))
        else:
            skipped.append(Skipped(name, "no label in the file's name (cat.17.jpg)"))
    for class_folder in folders:
        inside = visible_files(class_folder)
        rows += [Row(file.relative_to(root).as_posix(), class_folder.name, split) for file in inside]
        if not inside:
            skipped.append(Skipped(class_folder.relative_to(root).as_posix(), "class folder without files"))
    return rows, skipped


def _read_listing(path: Path) -> tuple[list[Row], list[Skipped]]:
    columns, records = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    for column in ("image", "label"):
        if column not in columns:
            raise DataError(f"{path} has no column {column!r}: it has {', '.join(map(repr, columns)) or 'no columns'}")
    rows: dict[str, Row] = {}
    skipped: list[Skipped] = []
    for number, record in enumerate(records, 2):  # line 1 is the header
        image, label, split = (str(record.get(column) or "").strip() for column in ("image", "label", "split"))
        if split and split.lower() not in SPLIT_NAMES:
            raise DataError(f"{path}, line {number}: split is {split!r}, but should be one of {', '.join(SPLITS)}")
        if not image or not label:
            skipped.append(Skipped(image or f"line {number}", "no label" if image else "no image"))
        elif image in rows:
            again = "" if rows[image].label == label else f", with another label ({label!r} after {rows[image].label!r})"
            skipped.append(Skipped(image, f"listed twice{again}"))
        else:
            rows[image] = Row(image, label, SPLIT_NAMES.get(split.lower(), ""))
    if len({bool(row.split) for row in rows.values()}) > 1:
        raise DataError(f"{path}: the column 'split' is empty in some lines; fill it in all of them, or leave it out")
    return list(rows.values()), skipped


def _read_csv(path: Path) -> tuple[list[str], Iterable[dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte-order mark first
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV UTF-8") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    return [column.strip() for column in reader.fieldnames or ()], (
        {(key or "").strip(): value for key, value in record.items()} for record in reader
    )


def _read_parquet(path: Path) -> tuple[list[str], Iterable[dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install pyarrow, or save the table as CSV") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    return table.column_names, table.to_pylist()
