"""Read a dataset from tables: one file, or those that Hugging Face puts into a folder.

These are a `metadata.csv` or `metadata.jsonl` beside the images, of the whole folder or of each split, and Parquet files with
the images inside, such as `data/train-00000-of-00002.parquet`.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from alexnet.data.columns import ColumnError
from alexnet.data.contents import Contents
from alexnet.data.folders import IMAGE_SUFFIXES
from alexnet.data.label_names import name_labels
from alexnet.data.listing import SUFFIXES, read_listing
from alexnet.data.name_patterns import split_of_folder
from alexnet.data.scan import visible, visible_files
from alexnet.data.table import Row, Skipped
from alexnet.errors import DataError, format_names
from alexnet.progress import say
from alexnet.recipe import Data

METADATA = tuple(f"metadata{suffix}" for suffix in SUFFIXES)
# `train-00000-of-00002`, which Hugging Face's older datasets end with a hash
PART = re.compile(r"(?P<name>.+?)(?:-(?P<number>\d+)-of-(?P<count>\d+))?(?:-[0-9a-f]{16})?")


class Rows(NamedTuple):
    """The rows of tables, those left out, and the images if they are inside."""

    rows: list[Row]
    skipped: list[Skipped]
    contents: Contents | None


def read_file(path: Path, settings: Data) -> Rows:
    """Read a single table; the names of images are relative to its folder."""
    return _read(path.parent, {path: ""}, settings)


def read_metadata(root: Path, settings: Data) -> Rows | None:
    """Read the metadata files of a folder of images; None if there are none, or if they do not have images and labels."""
    tables = _metadata(root)
    if not tables:
        return None
    try:
        result = _read(root, tables, settings)
    except ColumnError as error:
        if settings.columns:
            raise
        say(f"not used: {error}")
        return None
    known = {row.image for row in result.rows} | {image for image, _ in result.skipped}
    names = (file.relative_to(root).as_posix() for file in visible_files(root) if file.suffix.lower() in IMAGE_SUFFIXES)
    rows = _splits_of_folders(result.rows)
    return Rows(rows, [*result.skipped, *(Skipped(n, "not in the metadata") for n in names if n not in known)], result.contents)


def read_parquet_folder(root: Path, settings: Data) -> Rows | None:
    """Read all Parquet files in a folder; None if there are none."""
    tables = _parquet_splits(root, [file for file in visible_files(root) if file.suffix.lower() == ".parquet"])
    return _read(root, tables, settings) if tables else None


def _metadata(root: Path) -> dict[Path, str]:
    """Return the metadata files in a folder with their splits: one in the folder, or one in each folder of a split."""
    files = {folder: [folder / name for name in METADATA if (folder / name).is_file()] for folder in (root, *visible(root)[0])}
    if several := next((names for names in files.values() if len(names) > 1), None):
        raise DataError(f"{several[0].parent} has {format_names(file.name for file in several)}: keep one of them")
    if files[root]:
        return {files[root][0]: ""}
    splits = {names[0]: split_of_folder(folder.name) for folder, names in files.items() if names}
    found = [split for split, words in splits.values() if split and not words]
    return {file: split for file, (split, _) in splits.items()} if len(set(found)) == len(splits) else {}


def _parquet_splits(root: Path, files: list[Path]) -> dict[Path, str]:
    """Return the split of each Parquet file, by its name, or that of its folder if there are several; empty if none has one."""
    folders = sorted({file.parent for file in files})
    names = {file: file.parent.name if len(folders) > 1 else str(_part(file)["name"]) for file in files}
    splits = {file: split_of_folder(name) for file, name in names.items()}
    unnamed = [file for file, (split, _) in splits.items() if not split]
    alike = len({words for _, words in splits.values()}) == 1 and len({folder.parent for folder in folders}) == 1
    if len(folders) > 1 and (unnamed or not alike):
        raise DataError(f"{root} has Parquet files in {len(folders)} folders: give one of them, such as {folders[-1]}")
    if len(unnamed) == len(files):
        return dict.fromkeys(files, "")
    if unnamed or not alike:
        odd = f"{format_names(file.name for file in files)}, which are not all parts of train, val and test"
        raise DataError(f"{folders[0]} has {odd}: give a single file, or move the others elsewhere")
    return {file: split for file, (split, _) in splits.items()}


def _part(file: Path) -> Mapping[str, str | None]:
    match = PART.fullmatch(file.stem)
    assert match is not None  # it matches any name
    return match.groupdict()


def _warn_of_missing_parts(files: list[Path]) -> None:
    """Say which files of `train-00000-of-00002.parquet` and so on are missing."""
    parts: dict[tuple[str | None, int], int] = Counter()
    for part in map(_part, files):
        parts[part["name"], int(part["count"] or 1)] += 1
    for (name, count), found in parts.items():
        if found < count:
            parts_of = f"{name}-*-of-{count:05}{files[0].suffix}"
            say(f"only {found} of {count} files {parts_of} are used: give a folder that has all of them")


def _splits_of_folders(rows: list[Row]) -> list[Row]:
    """Return rows with the split that the first folder of each image is, if all are such: `train/1.png`."""
    folders = {row.image.partition("/")[0] for row in rows}
    splits = {folder: split_of_folder(folder) for folder in folders}
    found = {split for split, words in splits.values() if split and not words}
    if any(row.split for row in rows) or "train" not in found or not 1 < len(found) == len(folders):
        return rows
    return [row._replace(split=splits[row.image.partition("/")[0]][0]) for row in rows]


def _read(root: Path, tables: dict[Path, str], settings: Data) -> Rows:
    """Read `tables`, whose own splits are replaced by those given; names of images are relative to `root`."""
    _warn_of_missing_parts(list(tables))
    listings = {path: read_listing(path, settings) for path in tables}
    columns = Counter(tuple(listing.columns.items()) for listing in listings.values()).most_common(1)[0][0]
    which = ", ".join(f"{column} from {name!r}" for column, name in columns)
    say(f"{next(iter(tables))}{f' and {len(tables) - 1} more' if len(tables) > 1 else ''}: {which}")
    inside = [path for path, listing in listings.items() if listing.contents]
    if inside and len(inside) < len(tables):
        other = next(path for path in tables if path not in inside)
        raise DataError(f"{inside[0]} contains images, and {other} lists files: give one of them")
    rows: list[Row] = []
    skipped: list[Skipped] = []
    contents = Contents({})
    for path, listing in listings.items():
        folder = path.with_suffix("") if listing.contents and len(tables) > 1 else path.parent
        before = f"{folder.relative_to(root).as_posix()}/".removeprefix("./")
        absolute = [] if listing.contents else [row.image for row in listing.rows if Path(row.image).is_absolute()]
        names = {image: image for image in absolute}
        rows += [r._replace(image=names.get(r.image, before + r.image), split=tables[path] or r.split) for r in listing.rows]
        skipped += [Skipped(names.get(image, before + image), reason) for image, reason in listing.skipped]
        if listing.contents:
            contents.places.update({before + image: place for image, place in listing.contents.places.items()})
    if {row.split for row in rows} == {"train"} and any(tables.values()):  # alone, or beside an unlabelled test split
        rows = [row._replace(split="") for row in rows]
    rows = name_labels(rows, settings.label_names, dict.fromkeys((*(path.parent for path in tables), root)))
    return Rows(rows, skipped, contents if inside else None)
