"""Where images come from: a built-in dataset, a folder, or a CSV or Parquet file; all become a `Table`."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data import builtin
from alexnet.data.folders import read_folder
from alexnet.data.labels import tidy_label
from alexnet.data.table import SPLITS, Row, Skipped, Table
from alexnet.errors import DataError, printable, reason_of, shortened
from alexnet.recipe import local_path

# What people call the splits in a table.
SPLIT_NAMES = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}


def open_table(data: str | Path, data_root: Path | None = None, least: int = 2) -> Table:
    """Return the table of a dataset: a built-in name, a folder, or a CSV or Parquet file.

    A folder holds class folders, or files whose names begin with the label, or `train`, `val` and `test` folders of either.
    A CSV or Parquet file has the columns `image` (relative to the file, or absolute), `label` and, if wanted, `split`.
    `data_root` is where downloads of built-in datasets lie; `least` is the number of classes that there must be.

    Raises:
        DataError: nothing there, fewer than `least` classes, folders that may be classes or splits, columns
            missing, a download that failed.
    """
    if str(data) in builtin.NAMES:
        return builtin.load(str(data), data_root)
    path = local_path(data)
    try:
        if path.is_dir():
            rows, skipped = read_folder(path)
            return _table(path.name, path, rows, skipped, f"{path} has", least)
        if path.suffix.lower() in (".csv", ".parquet") and path.is_file():
            rows, skipped = _read_listing(path)
            return _table(path.stem, path.parent, rows, skipped, f"{path} has", least)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {reason_of(error)}") from error
    if path.exists():
        raise DataError(f"{path} is not a dataset: give a folder, or a CSV or Parquet file")
    known = f"not a built-in one ({', '.join(builtin.NAMES)})"
    raise DataError(f"no dataset {shortened(data)!r}: no such folder or file, and {known}; name the folder of your images")


def _table(name: str, root: Path, rows: list[Row], skipped: list[Skipped], subject: str, least: int) -> Table:
    spelled = [tidy_label(row.label) for row in rows]
    blank = [Skipped(row.image, "no label") for row, label in zip(rows, spelled, strict=True) if not label]
    rows = [row._replace(label=label) for row, label in zip(rows, spelled, strict=True) if label]
    labels = tuple(sorted({row.label for row in rows}))
    if len(labels) < least:
        found = f"one class alone, {shortened(labels[0])!r}" if labels else "no labelled images"
        raise DataError(
            f"{subject} {found}: put the images of each class into a folder of its own, begin each file's name with its label "
            "and a number (cat.17.jpg), or give a CSV file with the columns image and label"
        )
    if odd := [label for label in labels if printable(label) != label]:
        raise DataError(f"{subject} the label {shortened(odd[0])!r}, which holds control characters: name it otherwise")
    position = {label: i for i, label in enumerate(labels)}
    return Table(
        name=name,
        labels=labels,
        images=[row.image for row in rows],
        targets=np.array([position[row.label] for row in rows], dtype=np.int64),
        splits=np.array([row.split for row in rows], dtype="<U5"),
        root=root,
        skipped=(*skipped, *blank),
    )


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
