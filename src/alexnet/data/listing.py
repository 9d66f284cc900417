"""Read a table: a CSV, Parquet or JSON lines file with the columns `image`, `label` and, optionally, `split` and `group`."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from alexnet.data.columns import Record
from alexnet.data.contents import Contents
from alexnet.data.csv_reader import read_csv
from alexnet.data.jsonl_reader import read_jsonl
from alexnet.data.labels import normalize_label
from alexnet.data.name_patterns import split_of_folder
from alexnet.data.parquet import read_parquet
from alexnet.data.table import SPLITS, Row, Skipped
from alexnet.errors import DataError, truncate
from alexnet.recipe import Data

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
FILE_URL = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE | re.DOTALL)
DOWNLOAD = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://|data:\w+/", re.IGNORECASE)  # https://, s3://, data:image/png
WINDOWS = re.compile(r"[a-z]:[\\/]|\\\\", re.IGNORECASE)  # C:\photos, \\server\photos


class Listing(NamedTuple):
    """The content of a table: the names of its `columns`, its rows, those left out, and the images if they are inside."""

    columns: dict[str, str]
    rows: list[Row]
    skipped: list[Skipped]
    contents: Contents | None


def read_listing(path: Path, settings: Data) -> Listing:
    """Read a table; the names of its images are relative to its folder, or absolute."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        columns, records, contents = read_parquet(path, settings)
        return Listing(columns, *_rows(path, records, inside=contents is not None), contents)
    columns, lines = read_jsonl(path, settings) if suffix == ".jsonl" else read_csv(path, settings)
    return Listing(columns, *_rows(path, lines, inside=False), None)


def _rows(path: Path, records: Iterable[Record], *, inside: bool) -> tuple[list[Row], list[Skipped]]:
    rows: dict[str, Row] = {}  # by path, as there are several ways to write one
    skipped: list[Skipped] = []
    words: dict[str, str] = {}  # the file's name for each split
    for record in records:
        image, group = record.image or "", (record.group or "").strip()
        label, split = (normalize_label(text or "") for text in (record.label, record.split))
        where = f"{path}, {record.where}"
        try:
            image = image if inside else _file_name(image.strip(), path.parent)
        except DataError as error:
            raise DataError(f"{where}: image is {truncate(image)!r}, {error}") from None
        word = split.lower()
        split_name, other_words = split_of_folder(word)
        if split and (other_words or not split_name):
            expected = f"one of {', '.join(SPLITS)}: correct it, or rename the column"
            raise DataError(f"{where}: split is {truncate(split)!r}, but should be {expected}")
        if (first := words.setdefault(split_name, word)) != word:
            raise DataError(f"{where}: split is {split!r} here and {first!r} before: write {split_name!r} for both")
        key = image if inside else os.path.normpath(path.parent / image)
        if not image or not label:
            skipped.append(Skipped(image or record.where, "no label" if image else "no image"))
        elif key in rows:
            other = f", with another label ({truncate(label)!r} after {truncate(rows[key].label)!r})"
            skipped.append(Skipped(image, f"listed twice{'' if rows[key].label == label else other}"))
        else:
            rows[key] = Row(image, label, split_name, group)
    if len({bool(row.split) for row in rows.values()}) > 1:
        raise DataError(f"{path}: the column 'split' is empty in some rows; fill it in all of them, or remove it")
    return list(rows.values()), skipped


def _file_name(text: str, root: Path) -> str:
    r"""Return the path of a listed file, relative to `root` or absolute, with `/` between folders.

    `file://` URLs and `~/` become paths. `cat\1.jpg` becomes `cat/1.jpg`, unless there is a file with that name.
    """
    if not text:
        return ""
    if DOWNLOAD.match(text):
        raise DataError("which is not a local file: download the images, and list their files")
    if url := FILE_URL.fullmatch(text):
        text = os.fsdecode(unquote_to_bytes(url["path"]))
        if url["host"] and url["host"].lower() != "localhost":
            text = rf"\\{url['host']}{text}"
        text = re.sub("^/(?=[A-Za-z]:)", "", text)  # file:///C:/photos
    if "\0" in text:
        raise DataError("which holds a NUL character")
    if text.startswith(("~/", "~\\")):
        text = os.path.expanduser(text[0]) + text[1:]
    if os.sep == "/" and not os.path.lexists(root / text):
        if WINDOWS.match(text):
            raise DataError("a path on a Windows computer: write paths relative to the CSV or Parquet file")
        text = text.replace("\\", "/")
    return Path(text).as_posix()
