"""Read CSV files strictly: a file whose rows could be misread is refused, with the number of the line."""

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from alexnet.data.columns import Record, find_columns
from alexnet.errors import DataError
from alexnet.progress import say
from alexnet.recipe import Data

DELIMITERS = ",;\t|"
SEPARATOR = re.compile(r'"?sep=(.)"?[ \t]*(?:\r\n|\r|\n|$)', re.IGNORECASE)  # Excel writes this line before the header
HEADER = re.compile(r'\s*((?:"[^"]*"|[^"\r\n])*)')
LINE_END = re.compile(r"\r\n|\r|\n")
# How pandas, R, databases and spreadsheets write a missing value; `None` is not in the list, as it may be a class.
MISSING = {"nan", "NaN", "NAN", "-nan", "NA", "N/A", "n/a", "#N/A", "#NA", "#NV", "<NA>", "NULL", "null"}
WHOLE = re.compile(r"^(-?\d+)\.0+$")  # pandas writes `1.0` for 1 if another label is missing
LETTERS = re.compile(r"[^\W\d_]+")
PUNCTUATION = re.compile("[‘’‚“”„«»–—…°§·×€\xa0]")


def read_csv(path: Path, settings: Data) -> tuple[dict[str, str], Iterator[Record]]:
    """Return the names of the columns, and the non-blank rows; the label `1.0` is read as `1`, and `NaN` as missing.

    The text is UTF-8, UTF-16 with a byte-order mark, or Windows-1252. The delimiter is the most frequent of comma, semicolon,
    tab and `|` in the header, outside quotes, or the one in a first line such as `sep=;`.
    """
    text = _text(path)
    if separator := SEPARATOR.match(text):
        delimiter = separator[1]
    else:
        outside_quotes = re.sub('"[^"]*"', "", HEADER.findall(text)[0])
        delimiter = max(DELIMITERS, key=outside_quotes.count)
    rows = _rows(path, text, delimiter, 1 if separator else 0)
    _, header = next(rows, (0, []))
    positions = find_columns(path, header, settings)
    return {column: header[i] for column, i in positions.items()}, _records(path, header, rows, positions, delimiter)


def _records(
    path: Path, header: list[str], rows: Iterator[tuple[int, list[str]]], positions: dict[str, int], delimiter: str
) -> Iterator[Record]:
    for line, cells in rows:
        if cells == header:  # repeated where files were concatenated
            continue
        if any(cell.strip() for cell in cells[len(header) :]):
            raise _error(path, line, f"{len(cells)} fields, but the header has {len(header)}: a quote or delimiter too many")
        cells = [*cells, *[""] * (len(header) - len(cells))][: len(header)]  # Excel leaves out empty fields at the end
        if any(LINE_END.search(cell) for cell in cells) and _spans_rows(path.parent, cells, positions, delimiter):
            raise _error(path, line, "a quoted field continues on the next line: a quote is missing, or one too many")
        texts = {column: cells[i] for column, i in positions.items()}
        for column in ("label", "group"):
            text = WHOLE.sub(r"\1", texts.get(column, "").strip())
            texts[column] = "" if text in MISSING else text
        yield Record(f"line {line}", **texts)


def _text(path: Path) -> str:
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's "Unicode text"
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")  # spreadsheets put a byte-order mark first
    except UnicodeDecodeError as error:
        line = "" if wide else f", line {_line_after(content[: error.start].decode('utf-8', 'replace'))}"
        text = "" if wide else _windows_text(content)
        if not text:
            raise DataError(f"{path}{line} is not UTF-8 text: save it as CSV UTF-8") from error
        say(f"{path}{line} is not UTF-8 text, so it is read as Windows-1252: if letters look wrong, save it as CSV UTF-8")
    if "\0" in text:
        raise _error(path, _line_after(text[: text.index("\0")]), "a NUL character, so it is not text: save it as CSV UTF-8")
    return text


def _windows_text(content: bytes) -> str:
    """Return text in Windows-1252, in which Excel saves CSV files in Western Europe and America; empty if it is unlikely to be.

    Bytes above 127 must be common punctuation or letters, and these at most two thirds of a word, as in `été` (or one alone, as
    in `à`): text in another code, such as Cyrillic or Chinese, becomes symbols and words of such letters alone.
    """
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    words = [word for word in LETTERS.findall(text) if not word.isascii() and len(word) > 1]
    likely = all(3 * sum(char > "\x7f" for char in word) <= 2 * len(word) for word in words)
    return text if likely and PUNCTUATION.sub("", LETTERS.sub("", text)).isascii() else ""


def _line_after(text: str) -> int:
    """Return the number of the last line of `text`, from 1 as in an editor."""
    return len(LINE_END.findall(text)) + 1


def _rows(path: Path, text: str, delimiter: str, skip: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the non-blank rows after the first `skip` lines, each with the number of its first line."""
    quotes = 0

    def lines() -> Iterator[str]:
        nonlocal quotes
        for line in islice(io.StringIO(text, newline=""), skip, None):
            quotes += line.count('"')
            yield line

    reader, end = csv.reader(lines(), delimiter=delimiter, skipinitialspace=True, strict=True), skip
    try:
        for cells in reader:
            start, end = end + 1, skip + reader.line_num
            if quotes % 2:  # `cat"`: the csv module reads the quote as part of the field
                raise _error(path, start, "an odd number of double quotes: one is missing, or one too many")
            if any(cell.strip() for cell in cells):
                yield start, cells
    except csv.Error as error:
        reason = f"a quote is not closed, or is inside a quoted field and not doubled ({error})"
        if "end of data" in str(error):
            reason = "a quote is opened and never closed"
        elif "field limit" in str(error):
            most = f"{csv.field_size_limit():,} characters"
            reason = f"a field of more than {most}: remove its column, or close the quote before it"
        raise _error(path, end + 1, reason) from error


def _spans_rows(root: Path, cells: list[str], positions: dict[str, int], delimiter: str) -> bool:
    """Return whether a row with line breaks in its fields has probably swallowed other rows.

    This is so if a label or split has a line break; if an image's name has one and there is no such file; or if a line inside a
    field looks like a row that names an existing image.
    """
    if any(LINE_END.search(cells[i]) for column, i in positions.items() if column != "image"):
        return True
    image = positions["image"]
    if LINE_END.search(cells[image]) and not os.path.lexists(root / cells[image]):
        return True
    inner = [line.split(delimiter) for cell in cells for line in LINE_END.split(cell)[1:]]
    return any(len(row) > image and row[image].strip() and os.path.lexists(root / row[image].strip(' "')) for row in inner)


def _error(path: Path, line: int, reason: str) -> DataError:
    return DataError(f"{path}, line {line}: {reason}")
