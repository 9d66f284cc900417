"""Where images come from: a built-in dataset, a folder, or a CSV or Parquet file; all become a `Table`."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from alexnet.data import builtin
from alexnet.data.folders import IMAGE_SUFFIXES, read_folder
from alexnet.data.labels import normalize_label
from alexnet.data.listing import SUFFIXES, read_listing
from alexnet.data.scan import visible, visible_files
from alexnet.data.table import Row, Skipped, Table
from alexnet.errors import DataError, error_reason, printable, truncate
from alexnet.files import local_path


def open_table(data: str | Path, data_root: Path | None = None, least: int = 2) -> Table:
    """Return the table of a dataset: a built-in name, a folder, or a CSV or Parquet file.

    A folder holds class folders, or files whose names begin with the label, or `train`, `val` and `test` folders of either.
    A CSV or Parquet file has the columns `image` (relative to the file, or absolute), `label` and, if wanted, `split`.
    `data_root` is where downloads of built-in datasets lie; `least` is the number of classes that there must be.

    Raises:
        DataError: nothing there, fewer than `least` classes, folders that may be classes or splits, columns
            missing, a download that failed.
    """
    if not str(data).strip():
        raise DataError("the dataset's name is empty: name a folder, a CSV or Parquet file, or a built-in dataset")
    if str(data) in builtin.NAMES:
        return builtin.load(str(data), data_root)
    path = local_path(data)
    try:
        if path.is_dir():
            rows, skipped = read_folder(path)
            return _table(path.name, path, rows, skipped, path, least)
        if path.suffix.lower() in SUFFIXES and path.is_file():
            rows, skipped, contents = read_listing(path)
            return replace(_table(path.stem, path.parent, rows, skipped, path, least), contents=contents)
    except RecursionError as error:
        raise DataError(f"{path} has folders inside folders without end: give one of the inner ones") from error
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error_reason(error)}") from error
    if path.exists():
        raise DataError(f"{path} is not a dataset: give a folder, or a CSV or Parquet file")
    known = f"not a built-in one ({', '.join(builtin.NAMES)})"
    raise DataError(f"no dataset {truncate(data)!r}: no such folder or file, and {known}; name the folder of your images")


def _table(name: str, root: Path, rows: list[Row], skipped: list[Skipped], given: Path, least: int) -> Table:
    spelled = [normalize_label(row.label) for row in rows]
    blank = [Skipped(row.image, "no label") for row, label in zip(rows, spelled, strict=True) if not label]
    rows = [row._replace(label=label) for row, label in zip(rows, spelled, strict=True) if label]
    labels = tuple(sorted({row.label for row in rows}))
    if len(labels) < least:
        raise DataError(f"{given} has {_too_few(given, labels, [*skipped, *blank])}")
    if foreign := [label for label in labels if re.search("[\ud800-\udfff]", label)]:  # as of an archive made on Windows
        name = os.fsencode(foreign[0]).decode("utf-8", "replace")
        raise DataError(f"{given} has the label {truncate(name)!r}, whose name is not UTF-8: name it otherwise")
    if odd := [label for label in labels if printable(label) != label]:
        raise DataError(f"{given} has the label {truncate(odd[0])!r}, which holds control characters: name it otherwise")
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


def _too_few(given: Path, labels: tuple[str, ...], skipped: list[Skipped]) -> str:
    """Return what is wrong where there are too few classes, and the way out."""
    result = f"one class alone, {truncate(labels[0])!r}" if labels else "no labelled images"
    if skipped and (not labels or not given.is_dir()):
        first = next((one for one in skipped if Path(one.image).suffix.lower() in IMAGE_SUFFIXES), skipped[0])
        result += f" ({len(skipped):,} left out, such as {truncate(printable(first.image))}: {first.reason})"
    if not given.is_dir():
        return result
    if labels and (inside := _folders_inside(given / labels[0])):
        return f"{result}: if the folders in it are the classes, give {inside}"
    if not labels and (listings := [file for file in visible_files(given) if file.suffix.lower() in SUFFIXES]):
        return f"{result}: give one file, if it holds or lists images with labels, such as {listings[0]}"
    return (
        f"{result}: put the images of each class into a folder of its own, begin each file's name with its label and a number "
        "(cat.17.jpg), or give a CSV file with the columns image and label"
    )


def _folders_inside(folder: Path) -> Path | None:
    """Return the folder that holds several: of `archive/data/cat` and `archive/data/dog` it is `archive/data`."""
    folders = visible(folder)[0] if folder.is_dir() else []
    return _folders_inside(folders[0]) if len(folders) == 1 else folder if folders else None
