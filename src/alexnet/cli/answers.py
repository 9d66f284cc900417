"""What predict, explain and search query share: names that come on standard input, and answers that may be errors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer


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
    """Replace - by the lines of standard input, which are no patterns."""
    return [name for given in images for name in (map(Path, _lines(sys.stdin)) if given == "-" else [given])]


def _lines(stream: Iterable[str]) -> list[str]:
    return [name for line in stream if (name := line.rstrip("\r\n"))]
