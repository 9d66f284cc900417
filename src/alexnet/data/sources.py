"""Open a dataset as a `Table`: a built-in dataset, a folder, or a table in a file."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from alexnet.data import builtin, imagenet, photo_sets, remote
from alexnet.data.folders import IMAGE_SUFFIXES, read_folder
from alexnet.data.ilsvrc import find_ilsvrc, read_ilsvrc
from alexnet.data.labels import normalize_label
from alexnet.data.listing import SUFFIXES
from alexnet.data.scan import visible, visible_files
from alexnet.data.shards import is_shards, read_shards
from alexnet.data.table import Skipped, Table
from alexnet.data.tables import Rows, read_file, read_metadata, read_parquet_folder
from alexnet.errors import DataError, counted, error_reason, format_names, printable, truncate
from alexnet.files import local_path
from alexnet.progress import say
from alexnet.recipe import Data

NAMES = (*builtin.NAMES, *photo_sets.NAMES, imagenet.NAME)


def open_table(data: str | Path, data_root: Path | None = None, least: int = 2, settings: Data | None = None) -> Table:
    """Open a dataset: a built-in name, a folder, a CSV, Parquet or JSON lines file, or shards (`train-{000..146}.tar`).

    A folder contains class folders, or files whose names begin with the label, or `train`, `val` and `test` folders of
    either, or tables as Hugging Face arranges them, or WebDataset's shards, or CIFAR-10 or ImageNet as published. A table
    has the columns `image` (relative to the file, or absolute), `label` and, optionally, `split` and `group`, or those that
    `settings` name. `data_root` is the folder of downloads; `least` is the minimum number of classes.
    """
    if not str(data).strip():
        raise DataError("the dataset's name is empty: name a folder, a CSV or Parquet file, or a built-in dataset")
    path, settings = local_path(data), settings or Data()
    name = str(data)
    if name in builtin.NAMES:
        return builtin.load(name, data_root)
    try:
        if path.is_dir() and (path / builtin.CIFAR_FILES[0]).is_file():
            return builtin.load("cifar10", path)
        if path.is_dir():
            return _table(path.name, path, _read_folder(path, settings), path, least, settings.none_label)
        if remote.is_remote(name) and is_shards(name):
            root = path.parent  # names the cache, and nothing is read from it
            return _table(root.name, root, read_shards(name, settings), Path(name), least, settings.none_label)
        if not path.is_dir() and is_shards(str(path)):
            return _table(path.parent.name, path.parent, read_shards(str(path), settings), path, least, settings.none_label)
        if name in photo_sets.NAMES:
            folder = photo_sets.open_folder(name, data_root or builtin.default_root())
            return _table(name, folder, _read_photo_set(name, folder), folder, least, "")
        if name == imagenet.NAME:
            folder = find_ilsvrc(data_root or builtin.default_root())
            return _table(name, folder, _read_folder(folder, settings), folder, least, "")
        if path.suffix.lower() in SUFFIXES and path.is_file():
            return _table(path.stem, path.parent, read_file(path, settings), path, least, settings.none_label)
    except RecursionError as error:
        raise DataError(f"{path} has too many levels of folders: give one of the inner folders") from error
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error_reason(error)}") from error
    if path.exists():
        raise DataError(f"{path} is not a dataset: give a folder, or a CSV, Parquet, JSON lines (.jsonl) or .tar file")
    known = f"not a built-in one ({', '.join(NAMES)})"
    raise DataError(f"no dataset {truncate(data)!r}: no such folder or file, and {known}; name the folder of your images")


def _read_folder(path: Path, settings: Data) -> Rows:
    if found := read_ilsvrc(path) or read_metadata(path, settings):
        return found
    if is_shards(str(path)):
        return read_shards(str(path), settings)
    rows, skipped = read_folder(path)
    if not rows and (tables := read_parquet_folder(path, settings)):
        return tables
    if settings.columns:
        say(f"{path} has no table, so there is no column {format_names(settings.columns.values())}")
    return Rows(rows, skipped, None)


def _read_photo_set(name: str, folder: Path) -> Rows:
    """Return the photos in a folder of a built-in dataset, with the names of their classes; say if some are missing."""
    its, (rows, skipped) = photo_sets.SETS[name], read_folder(folder)
    if len(rows) != its.photos:
        say(f"{folder} has {len(rows):,} of the {its.photos:,} photos of {name}")
    return Rows([row._replace(label=its.labels.get(row.label, row.label)) for row in rows], skipped, None)


def _table(name: str, root: Path, content: Rows, given: Path, least: int, none_label: str) -> Table:
    words = {row.label: normalize_label(row.label) for row in content.rows}
    ids = words.keys() - {"", none_label}
    if ids and ids <= imagenet.imagenet_classes().keys():
        words |= imagenet.imagenet_classes()
    rows = [row._replace(label=words[row.label]) for row in content.rows]
    skipped = [*content.skipped, *(Skipped(row.image, "no label") for row in rows if not row.label)]
    rows = [row for row in rows if row.label]
    labels = tuple(sorted({row.label for row in rows}))
    if len(labels) < least:
        raise DataError(f"{given} has {_too_few(given, labels, skipped)}")
    if undecoded := [label for label in labels if re.search("[\ud800-\udfff]", label)]:  # such as from a Windows archive
        name = os.fsencode(undecoded[0]).decode("utf-8", "replace")
        raise DataError(f"{given} has the label {truncate(name)!r}, which is not UTF-8: rename it")
    if unprintable := [label for label in labels if printable(label) != label]:
        raise DataError(f"{given} has the label {truncate(unprintable[0])!r}, which has control characters: rename it")
    classes = tuple(label for label in labels if label != none_label)
    if len(classes) < len(labels) and len(classes) < least:  # such as `crack` and `none`
        say(f"{given}: {none_label!r} is a class here, as there is only one other")
        classes = labels
    known = Rows([row for row in rows if row.label in classes], skipped, content.contents)
    result = _of_classes(name, root, classes, known)
    if len(classes) == len(labels):
        return result
    others = Rows([row._replace(label=classes[0]) for row in rows if row.label == none_label], [], content.contents)
    many = counted(len(others.rows), "image")
    say(f"{given}: {none_label!r} is not a class but {many} of other things; --set data.none_label= makes it a class")
    return replace(result, unknown=_of_classes(f"{name}-none", root, classes, others))


def _of_classes(name: str, root: Path, labels: tuple[str, ...], content: Rows) -> Table:
    """Return a table of all rows, whose labels are among `labels`."""
    rows, position = content.rows, {label: i for i, label in enumerate(labels)}
    return Table(
        name=name,
        labels=labels,
        images=[row.image for row in rows],
        targets=np.array([position[row.label] for row in rows], dtype=np.int64),
        splits=np.array([row.split for row in rows], dtype="<U5"),
        root=root,
        contents=content.contents,
        groups=[row.group for row in rows] if any(row.group for row in rows) else None,
        skipped=tuple(content.skipped),
    )


def _too_few(given: Path, labels: tuple[str, ...], skipped: list[Skipped]) -> str:
    """Return a message about too few classes that says how to arrange the dataset."""
    result = f"only one class, {truncate(labels[0])!r}" if labels else "no labelled images"
    if skipped and (not labels or not given.is_dir()):
        first = next((one for one in skipped if Path(one.image).suffix.lower() in IMAGE_SUFFIXES), skipped[0])
        result += f" ({len(skipped):,} left out, such as {truncate(printable(first.image))}: {first.reason})"
    if not given.is_dir():
        return result
    if labels and (inside := _folders_inside(given / labels[0])):
        return f"{result}: if the folders in it are the classes, give {inside}"
    if not labels and (listings := [file for file in visible_files(given) if file.suffix.lower() in SUFFIXES]):
        return f"{result}: give a file that contains or lists labelled images, such as {listings[0]}"
    advice = "put the images of each class into its own folder, start each file name with its label and a number (cat.17.jpg)"
    return f"{result}: {advice}, or give a CSV file with the columns image and label"


def _folders_inside(folder: Path) -> Path | None:
    """Return the first folder with several inner folders: `archive/data` for `archive/data/cat` and `archive/data/dog`."""
    folders = visible(folder)[0] if folder.is_dir() else []
    return _folders_inside(folders[0]) if len(folders) == 1 else folder if folders else None
