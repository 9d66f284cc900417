"""Read Parquet files: labels and splits of any type as text, and images by name or as bytes in the file."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data.columns import Record, find_columns
from alexnet.data.contents import Contents, stat_fact
from alexnet.errors import DataError, counted, printable, truncate
from alexnet.recipe import Data

TEXT = ("string", "large_string", "string_view")
BYTES = ("binary", "large_binary", "binary_view", "fixed_size_binary")
BATCH_SIZE = 16  # images in memory
FLOATS = {16: np.float16, 32: np.float32, 64: np.float64}  # by bits


class Images:
    """The column of image files in the Parquet file `path`; their bytes are read from disk when needed.

    Reading in row order is fast; going back rereads a row group from its start. One file is open at a time.
    """

    _opened: "Images | None" = None

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        self.close()

    @property
    def path(self) -> Path:
        """The file's path."""
        return self._path

    def fact(self) -> str:
        """Return what changes when the file does: its size and its time of change."""
        return stat_fact(self.path.stat())

    def close(self) -> None:
        """Close the file, and free the images in memory."""
        self._file: Any = None
        self._starts = [0]  # the first row of each row group, and the end of the last
        self._batches: Iterator[Any] = iter(())
        self._first, self._batch = 0, list[Any]()  # the current batch, and its first row

    def read(self, row: int) -> bytes:
        """Return the bytes of an image, empty for a missing value."""
        if Images._opened not in (None, self):
            Images._opened.close()
        Images._opened = self
        with _reading(self.path):
            self._seek(row)
        value = self._batch[row - self._first]
        return (value.get("bytes") if isinstance(value, dict) else value) or b""

    def _seek(self, row: int) -> None:
        if self._file is None:
            self._file = _open(self.path)
            counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
            self._starts = list(accumulate(counts, initial=0))
        group = bisect_right(self._starts, row) - 1
        if row < self._first or not self._batch or self._starts[group] > self._first + len(self._batch):
            groups_left = list(range(group, self._file.num_row_groups))
            self._batches = self._file.iter_batches(BATCH_SIZE, row_groups=groups_left, columns=[self._column])
            self._first, self._batch = self._starts[group], []
        while row >= self._first + len(self._batch):
            self._first += len(self._batch)
            batch = next(self._batches, None)
            if batch is None:
                raise DataError(f"{self.path} has changed: it has fewer rows than when it was opened")
            self._batch = batch.column(0).to_pylist()


def read_parquet(path: Path, settings: Data) -> tuple[dict[str, str], list[Record], Contents | None]:
    """Return the names of the columns, the rows, numbered from 0 as in pandas, and the images if the file contains them.

    Images are text (file names), bytes, or Hugging Face's struct of bytes and path. Images in the file are named by that path
    if it is unique, else `row-000012`. The others are text, UTF-8 bytes, integers, booleans or floats (1.0 is read as `1`);
    NaN and null are missing values. Integers become class names if Hugging Face's metadata has them.
    """
    with _reading(path):
        file = _open(path)
        schema = file.schema_arrow
        columns = {column: schema.names[i] for column, i in find_columns(path, schema.names, settings).items()}
        images, contents = _images(path, file, columns["image"])
        texts = [_texts(path, file, name) for column, name in columns.items() if column != "image"]
    values = zip(images, *texts, strict=True)  # in the order of the columns, as find_columns puts `image` first
    return columns, [Record(f"row {row}", **dict(zip(columns, v, strict=True))) for row, v in enumerate(values)], contents


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install pyarrow, or save the table as CSV") from error
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = printable(str(error).partition("\n")[0])
        raise DataError(f"{path} is not a readable Parquet file: {truncate(reason, 200)}") from error


def _open(path: Path) -> Any:
    import pyarrow.parquet

    # By default, pyarrow keeps every row group that was read; so, only one page of each column is in memory.
    return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def _images(path: Path, file: Any, name: str) -> tuple[list[str | None], Contents | None]:
    """Return the name of each image, and the images if the column contains them."""
    kind = file.schema_arrow.field(name).type
    paths: list[str | None] = [None] * file.metadata.num_rows
    column, base = name, _base(kind)
    if base in TEXT or base == "null" or (base in BYTES and _is_text(file, name)):
        return _texts(path, file, name), None
    fields = {field.name: _base(field.type) for field in kind} if base == "struct" else {}
    if fields.get("path") in TEXT:
        paths = [value and value["path"] for value in file.read([f"{name}.path"]).column(name).to_pylist()]
    if fields.get("bytes") in BYTES and not _all_null(file, f"{name}.bytes"):
        column = f"{name}.bytes"
    elif fields.get("path") in TEXT:
        return paths, None
    elif base not in BYTES:
        held = f"the column {truncate(name)!r} holds {truncate(kind)}"
        raise DataError(f"{path}: {held}, but should hold names of files, or files as bytes")
    # These paths only name the images: there need be no such files.
    unique = len({value for value in paths if value}) == len(paths)
    names = [value if unique and value else f"row-{row:06}" for row, value in enumerate(paths)]
    content = Images(path, column)
    return list(names), Contents({value: (content, row) for row, value in enumerate(names)})


def _base(kind: Any) -> str:
    """Return the name of a type without parameters; for a dictionary, that of its values."""
    import pyarrow

    while pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind).partition("[")[0].partition("<")[0].partition("(")[0]


def _all_null(file: Any, leaf: str) -> bool:
    """Return whether a column has no value, by the statistics of its row groups."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns) if group.column(i).path_in_schema == leaf]
    return all(c.statistics is not None and c.statistics.null_count == c.num_values for c in chunks)


def _is_text(file: Any, name: str) -> bool:
    """Return whether bytes are file names: text without control characters, which no image file is."""
    values = (value for batch in file.iter_batches(1, columns=[name]) for value in batch.column(0).to_pylist())
    first = next((value for value in values if value), b"")
    try:
        text = first.decode()
    except UnicodeDecodeError:
        return False
    return 0 < len(text) < 4096 and printable(text) == text


def _class_names(schema: Any, name: str) -> list[Any] | None:
    """Return the names of the classes 0, 1, 2 … from Hugging Face's metadata of a column."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][name]["names"]
    except (KeyError, TypeError, ValueError):  # no metadata, or not a class label
        return None
    return names if isinstance(names, list) else None


def _texts(path: Path, file: Any, name: str) -> list[str | None]:
    """Return a column's values as text; null and NaN, and -1 if the column has class names, become None."""
    import pyarrow

    column, classes = file.read([name]).column(name), _class_names(file.schema_arrow, name)
    while pyarrow.types.is_dictionary(column.type):
        column = pyarrow.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
    kind, base = column.type, _base(column.type)
    is_fraction = pyarrow.types.is_floating(kind) or pyarrow.types.is_decimal(kind)
    is_integer = pyarrow.types.is_integer(kind)
    if not (is_fraction or is_integer or base in (*TEXT, *BYTES, "bool", "null")):
        raise DataError(f"{path}: the column {truncate(name)!r} holds {truncate(kind)}, but should hold text or whole numbers")

    def error(row: int, value: Any, reason: str) -> DataError:
        return DataError(f"{path}, row {row}: {name} is {truncate(value)}, {reason}")

    def text(row: int, value: Any) -> str | None:
        if value is None or value != value or (classes and is_integer and value == -1):  # NaN differs from itself
            return None
        if classes and is_integer and not 0 <= value < len(classes):
            raise error(row, value, f"but the file has names for {counted(len(classes), 'class')}, from 0")
        if classes and is_integer:
            return str(classes[value])
        if is_fraction and abs(value) == float("inf"):
            raise error(row, value, "which is not a label")
        if is_fraction:
            return str(int(value)) if value == int(value) else str(FLOATS[kind.bit_width](value))
        try:
            return str(value, "utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as cause:
            raise error(row, value, "which is not UTF-8 text") from cause

    return [text(row, value) for row, value in enumerate(column.to_pylist())]
