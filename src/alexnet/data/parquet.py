"""A Parquet file as a listing: typed values become text, and the images may lie in the file itself."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alexnet.data.columns import Record, find_columns
from alexnet.errors import DataError, printable, truncate

TEXT = ("string", "large_string", "string_view")
BYTES = ("binary", "large_binary", "binary_view", "fixed_size_binary")
AT_ONCE = 16  # images in memory


class Contents:
    """The images that a Parquet file holds, as the bytes of a file each, by name; read from disk when they are asked for.

    In the order of the rows, each is read once; what comes before the last one is searched from the start of its row group.

    Attributes:
        path: the Parquet file.
    """

    def __init__(self, path: Path, column: str, rows: dict[str, int]) -> None:
        self.path, self._column, self._rows = path, column, rows
        self._file: Any = None
        self._starts: list[int] = []  # the first row of each row group
        self._batches: Iterator[Any] = iter(())
        self._first, self._batch = 0, list[Any]()  # what was read last, and its first row

    def __getitem__(self, name: str) -> bytes:
        """Return the bytes of an image, none where there is no value.

        Raises:
            DataError: the Parquet file cannot be read.
        """
        row = self._rows[name]
        with _reading(self.path):
            self._seek(row)
        value = self._batch[row - self._first]
        return (value.get("bytes") if isinstance(value, dict) else value) or b""

    def _seek(self, row: int) -> None:
        if self._file is None:
            self._file = _open(self.path)
            groups = (self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups))
            self._starts = [0]
            for count in groups:
                self._starts.append(self._starts[-1] + count)
        group = bisect_right(self._starts, row) - 1
        if row < self._first or not self._batch or self._starts[group] > self._first + len(self._batch):
            groups_left = list(range(group, self._file.num_row_groups))
            self._batches = self._file.iter_batches(AT_ONCE, row_groups=groups_left, columns=[self._column])
            self._first, self._batch = self._starts[group], []
        while row >= self._first + len(self._batch):
            self._first += len(self._batch)
            batch = next(self._batches, None)
            if batch is None:
                raise DataError(f"{self.path} has fewer rows than when it was opened: it has changed")
            self._batch = batch.column(0).to_pylist()


def read_parquet(path: Path) -> tuple[list[Record], Contents | None]:
    """Return the rows of a Parquet file, and the images if it holds them; rows count from 0, as in pandas.

    Images are text, which names files, or bytes, or Hugging Face's struct of bytes and path. Images in the file are named by
    that path where each row has another one, else `row-000012`. Labels and splits are text, bytes in UTF-8, whole numbers,
    booleans or floats, a whole one of which reads as a whole number: 1.0 as `1`. NaN and null are no value. Class names that
    Hugging Face keeps beside whole numbers take their place.

    Raises:
        DataError: pyarrow is missing, the file is damaged, or a column is missing or of another type.
    """
    with _reading(path):
        file = _open(path)
        schema = file.schema_arrow
        places = find_columns(path, schema.names)
        columns = {column: schema.names[place] for column, place in places.items()}
        texts = {}
        for column in places.keys() - {"image"}:
            name = columns[column]
            texts[column] = _texts(path, name, file.read([name]).column(name), _class_names(schema, name))
        images, contents = _images(path, file, columns["image"])
    none = [None] * len(images)
    values = zip(images, texts["label"], texts.get("split", none), strict=True)
    return [Record(f"row {row}", *value) for row, value in enumerate(values)], contents


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

    return pyarrow.parquet.ParquetFile(path)


def _images(path: Path, file: Any, name: str) -> tuple[list[str | None], Contents | None]:
    """Return the name of each image, and the images where the column holds them."""
    kind = file.schema_arrow.field(name).type
    count = file.metadata.num_rows
    paths: list[str | None] = [None] * count
    column = name
    if _base(kind) == "struct":
        fields = {field.name: _base(field.type) for field in kind}
        if fields.get("path") in TEXT:
            table = file.read([f"{name}.path"])
            paths = [value and value["path"] for value in table.column(name).to_pylist()]
        if fields.get("bytes") not in BYTES or _all_null(file, f"{name}.bytes"):
            if fields.get("path") in TEXT:
                return paths, None
            raise _refused(path, name, kind)
        column = f"{name}.bytes"
    elif _base(kind) not in BYTES:
        if _base(kind) not in (*TEXT, "null"):
            raise _refused(path, name, kind)
        return _texts(path, name, file.read([name]).column(name)), None
    elif _is_text(file, name):
        return _texts(path, name, file.read([name]).column(name)), None
    # A path here is a name alone, and no file's.
    named = len({value for value in paths if value}) == count
    names = [value if named and value else f"row-{row:06}" for row, value in enumerate(paths)]
    return list(names), Contents(path, column, {value: row for row, value in enumerate(names)})


def _base(kind: Any) -> str:
    """Return the name of a type, of a dictionary's values for a dictionary, without parameters."""
    import pyarrow

    while pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind).partition("[")[0].partition("<")[0].partition("(")[0]


def _refused(path: Path, name: str, kind: Any) -> DataError:
    return DataError(
        f"{path}: the column {truncate(name)!r} holds {truncate(kind)}, but should hold names of files, or files as bytes"
    )


def _all_null(file: Any, leaf: str) -> bool:
    """Tell whether a column has no value, by the statistics of its row groups."""
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns) if group.column(i).path_in_schema == leaf]
    return all(c.statistics is not None and c.statistics.null_count == c.num_values for c in chunks)


def _is_text(file: Any, name: str) -> bool:
    """Tell whether bytes are names of files: no image is text without a line end or another control character."""
    values = (value for batch in file.iter_batches(1, columns=[name]) for value in batch.column(0).to_pylist())
    first = next((value for value in values if value), b"")
    try:
        text = first.decode()
    except UnicodeDecodeError:
        return False
    return 0 < len(text) < 4096 and printable(text) == text


def _class_names(schema: Any, name: str) -> list[str] | None:
    """Return the names of the classes 0, 1, 2 … that Hugging Face keeps in the schema of a column."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][name]["names"]
    except (KeyError, TypeError, ValueError):  # no metadata, or another feature's
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _texts(path: Path, name: str, column: Any, classes: list[str] | None = None) -> list[str | None]:
    """Return a column's values as text; null and NaN are None, and so is -1 where there are `classes`."""
    import pyarrow

    while pyarrow.types.is_dictionary(column.type):
        column = pyarrow.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
    kind, base = column.type, _base(column.type)
    numbers = pyarrow.types.is_floating(kind) or pyarrow.types.is_decimal(kind)
    whole = pyarrow.types.is_integer(kind)
    if not (numbers or whole or base in (*TEXT, *BYTES, "bool", "null")):
        raise DataError(f"{path}: the column {truncate(name)!r} holds {truncate(kind)}, but should hold text or whole numbers")

    def text(row: int, value: Any) -> str | None:
        # NaN is not itself.
        if value is None or value != value or (classes and whole and value == -1):
            return None
        if classes and whole:
            if not 0 <= value < len(classes):
                raise DataError(f"{path}, row {row}: {name} is {value}, but the file names {len(classes)} classes, 0 and up")
            return str(classes[value])
        if numbers and value in (float("inf"), float("-inf")):
            raise DataError(f"{path}, row {row}: {name} is {value}, which is no label")
        if numbers:
            return str(int(value)) if value == int(value) else str(kind.to_pandas_dtype()(value))
        if isinstance(value, bytes):
            try:
                return str(value, "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, row {row}: {name} is {truncate(value)}, which is not UTF-8 text") from error
        return str(value)

    return [text(row, value) for row, value in enumerate(column.to_pylist())]
