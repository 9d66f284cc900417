"""What predict, explain and search query share: names that come on standard input, and answers that may be errors."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from alexnet.errors import DataError

IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")  # how files of images begin


class Counted:
    """Answers, of which all and those that are errors are counted as they come."""

    def __init__(self, answers: Iterable[dict[str, Any]]) -> None:
        self._answers = answers
        self.total = self.errors = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for answer in self._answers:
            self.total += 1
            self.errors += "error" in answer
            yield answer


def fail_if_unread(answers: Counted) -> None:
    """End with exit code 1 if one of the answers was an error."""
    if answers.errors:
        print(f"{answers.errors} of {answers.total} images could not be read", file=sys.stderr)
        raise typer.Exit(1)


def names_of(images: list[str]) -> list[str | Path]:
    """Replace - by the names on standard input, which are no patterns.

    Raises:
        DataError: it holds an image and no names; or there are no names at all.
    """
    result = [name for given in images for name in (map(Path, _names(_read_input())) if given == "-" else [given])]
    if not result:
        raise DataError("no image: standard input holds no names")
    return result


def _read_input() -> bytes:
    if sys.stdin is None:
        raise typer.BadParameter("- stands for standard input, which is closed")
    content = sys.stdin.buffer.read()
    if content.startswith(IMAGES):
        raise DataError("standard input holds an image, but - stands for a list of names: name the image's file")
    return content


def _names(content: bytes) -> list[str]:
    """Return the names in a list: separated by NUL characters, as by `find -print0`, where there are any, else one a line.

    UTF-16 has a byte-order mark, as PowerShell writes it; other bytes are names as the system has them.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", "replace")
    else:
        content = content.removeprefix(codecs.BOM_UTF8)
        try:
            text = os.fsdecode(content)
        except UnicodeDecodeError:  # Windows' older commands write in a code page
            text = content.decode(sys.stdin.encoding, "replace")
    names = text.split("\0") if "\0" in text else re.split(r"\r\n|\r|\n", text)
    return [name for name in names if name.strip()]
