"""Reading CSV strictly: where rows could be misread, the file is refused and the line named."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from alexnet.data.columns import Record, find_columns
from alexnet.errors import DataError

DELIMITERS = ",;\t|"
SEPARATOR = re.compile(r'"?sep=(.)"?[ \t]*(?:\r\n|\r|\n|$)', re.IGNORECASE)  # a line that Excel writes before the header
HEADER = re.compile(r'\s*((?:"[^"]*"|[^"\r\n])*)')
LINE_END = re.compile(r"\r\n|\r|\n")
# What pandas, R, databases and spreadsheets write where a value is missing; `None` may be a class, and stays one.
MISSING = {"nan", "NaN", "NAN", "-nan", "NA", "N/A", "n/a", "#N/A", "#NA", "#NV", "<NA>", "NULL", "null"}
WHOLE = re.compile(r"(-?\d+)\.0+")  # pandas makes `1.0` of 1 where another label is missing


def read_csv(path: Path) -> Iterator[Record]:
    """Yield the rows of a CSV file, blank ones left out; labels as of Parquet: `1.0` is `1`, and `NaN` none.

    The text is UTF-8, or UTF-16 with a byte-order mark. The delimiter is a comma, semicolon, tab or `|`: the one that the
    header has most of outside quotes, or that a first line `sep=;` names.

    Raises:
        DataError: another encoding, a column that is missing, a quote that is not closed, more fields than in the header.
        OSError: the file cannot be read.
    """
    text = _text(path)
    separator = SEPARATOR.match(text)
    delimiter = separator[1] if separator else _delimiter(text)
    rows = _rows(path, text, delimiter, 1 if separator else 0)
    header = next(rows, (0, []))[1]
    places = find_columns(path, header)
    for line, cells in rows:
        if cells == header:  # again, where files were put one after the other
            continue
        if any(cell.strip() for cell in cells[len(header) :]):
            raise _refused(path, line, f"{len(cells)} fields, but the header has {len(header)}: a quote or delimiter too many")
        cells = [*cells, *[""] * (len(header) - len(cells))][: len(header)]  # Excel leaves out empty fields at the end
        if any(LINE_END.search(cell) for cell in cells) and _spans_rows(path.parent, cells, places, delimiter):
            raise _refused(path, line, "a quoted field goes on in the next line: a quote is missing, or one too many")
        result = {column: cells[place] for column, place in places.items()}
        yield Record(f"line {line}", result["image"], _label(result["label"]), result.get("split"))


def _label(cell: str) -> str | None:
    whole = WHOLE.fullmatch(cell.strip())
    return None if cell.strip() in MISSING else whole[1] if whole else cell


def _text(path: Path) -> str:
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's "Unicode text"
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")  # spreadsheets put a byte-order mark first
    except UnicodeDecodeError as error:
        line = "" if wide else f", line {_line_after(content[: error.start].decode('utf-8', 'replace'))}"
        raise DataError(f"{path}{line} is not UTF-8 text: save it as CSV UTF-8") from error
    if "\0" in text:
        raise _refused(path, _line_after(text[: text.index("\0")]), "a NUL character, as text has none: save it as CSV UTF-8")
    return text


def _line_after(text: str) -> int:
    """Return the number of the line that `text` ends in; an editor counts from 1."""
    return len(LINE_END.findall(text)) + 1


def _delimiter(text: str) -> str:
    header = HEADER.match(text)
    assert header is not None  # it matches the empty text
    outside = re.sub('"[^"]*"', "", header[1])
    return max(DELIMITERS, key=outside.count)


def _rows(path: Path, text: str, delimiter: str, skip: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows after the first `skip` lines, each with the number of its first line; blank ones are left out."""
    quotes = 0

    def lines() -> Iterator[str]:
        nonlocal quotes
        for line in io.StringIO(text, newline=""):
            quotes += line.count('"')
            yield line

    source = lines()
    for _ in range(skip):
        next(source)
    reader = csv.reader(source, delimiter=delimiter, skipinitialspace=True, strict=True)
    quotes, end = 0, skip
    try:
        for cells in reader:
            start, end = end + 1, skip + reader.line_num
            if quotes % 2:  # `cat"`: the module csv takes it for a part of the field
                raise _refused(path, start, "an odd number of double quotes: one is missing, or one too many")
            if any(cell.strip() for cell in cells):
                yield start, cells
    except csv.Error as error:
        raise _refused(path, end + 1, _reason(str(error))) from error


def _reason(error: str) -> str:
    if "field limit" in error:
        return f"a field of more than {csv.field_size_limit():,} characters: leave its column out, or close the quote before it"
    if "end of data" in error:
        return "a quote is opened and never closed"
    return f"a quote is not closed, or stands inside a quoted field and is not doubled ({error})"


def _spans_rows(root: Path, cells: list[str], places: dict[str, int], delimiter: str) -> bool:
    """Tell whether a row with line breaks in its fields has swallowed others.

    No label has line breaks; an image may if there is such a file; in other fields no line may begin a row of a file.
    """
    if any(LINE_END.search(cells[path]) for column, path in places.items() if column != "image"):
        return True
    image = places["image"]
    if LINE_END.search(cells[image]) and not os.path.lexists(root / cells[image]):
        return True
    inner = [line.split(delimiter) for cell in cells for line in LINE_END.split(cell)[1:]]
    return any(len(row) > image and row[image].strip() and os.path.lexists(root / row[image].strip(' "')) for row in inner)


def _refused(path: Path, line: int, reason: str) -> DataError:
    return DataError(f"{path}, line {line}: {reason}")
