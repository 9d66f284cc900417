"""The images of predict, explain and search query: names from standard input, and the exit code if one cannot be read."""

import codecs
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from alexnet.cli.output import print_json
from alexnet.errors import DataError, counted

Printer = Callable[[Iterable[dict[str, Any]]], None]

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")  # first bytes of image files


def print_results(results: Iterable[dict[str, Any]], print_text: Printer, as_json: bool) -> None:
    """Print results by `print_text` as they arrive, or all as one JSON document; exit with code 1 if one has an error."""
    has_error = []

    def checked() -> Iterator[dict[str, Any]]:
        for result in results:
            has_error.append("error" in result)
            yield result

    if as_json:
        print_json(list(checked()))
    else:
        print_text(checked())
    if any(has_error):
        print(f"{sum(has_error)} of {counted(len(has_error), 'image')} could not be read", file=sys.stderr)
        raise typer.Exit(1)


def image_names(arguments: list[str]) -> list[str | Path]:
    """Replace `-` with the names on standard input; they are paths, never patterns."""
    names = [name for given in arguments for name in (map(Path, _split_names(_read_stdin())) if given == "-" else [given])]
    if not names:
        raise DataError("no images: standard input has no file names")
    return names


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise typer.BadParameter("- stands for standard input, which is closed")
    content = sys.stdin.buffer.read()
    if content.startswith(SIGNATURES):
        raise DataError("standard input is an image, but - stands for a list of names: give the name of the image's file")
    return content


def _split_names(content: bytes) -> list[str]:
    """Return the names in a list, separated by NUL (`find -print0`) if there is any, else by newlines.

    UTF-16 is recognised by its byte-order mark, which PowerShell writes; other bytes are decoded as file names.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", "replace")
    else:
        content = content.removeprefix(codecs.BOM_UTF8)
        try:
            text = os.fsdecode(content)
        except UnicodeDecodeError:  # older Windows commands write in a code page
            text = content.decode(sys.stdin.encoding, "replace")
    names = text.split("\0") if "\0" in text else re.split(r"\r\n|\r|\n", text)
    return [name for name in names if name.strip()]
