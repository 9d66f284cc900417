"""Read JSON lines: an object in each line, whose keys are the columns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alexnet.data.columns import Record, find_columns
from alexnet.errors import DataError, truncate
from alexnet.recipe import Data


def read_jsonl(path: Path, settings: Data) -> tuple[dict[str, str], Iterator[Record]]:
    """Return the names of the columns, and the rows: text, or numbers and booleans as text; the label 1.0 is read as `1`.

    `null`, NaN and keys that a line lacks are missing values.
    """
    names = list(dict.fromkeys(key for _, row in _rows(path) for key in row))
    columns = {column: names[i] for column, i in find_columns(path, names, settings).items()}
    return columns, _records(path, columns)


def _records(path: Path, columns: dict[str, str]) -> Iterator[Record]:
    for line, row in _rows(path):
        texts = {column: _text(path, line, name, row.get(name)) for column, name in columns.items()}
        yield Record(f"line {line}", **texts)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the object in each line that is not blank, with the line's number."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(path, number, line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as UTF-8") from error


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            raise DataError(f"{path}, line {number}: a key is there twice: remove one of the two")
        return row

    try:
        row = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"{path}, line {number}: not JSON ({truncate(reason)}): each line should hold one object") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: {truncate(line.strip())} is not an object, such as {{'image': …, 'label': …}}")
    return row


def _text(path: Path, line: int, name: str, value: Any) -> str | None:
    """Return a value as text, as those of Parquet files; None if it is missing."""
    if value is None or value != value:  # NaN differs from itself
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int) or (isinstance(value, float) and abs(value) != float("inf")):
        return str(value)
    raise DataError(f"{path}, line {line}: {name} is {truncate(value)}, but should be text or a number")
