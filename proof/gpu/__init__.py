"""What a GPU changes, checked and measured by one command of at most 12 minutes: `python -m proof.gpu`.

Each step runs in a process of its own, within its time, and no failure stops the others. Without a GPU all of it runs on the
CPU, narrower and on fewer images, so that each line of it is tried before a GPU is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

MARK = "ROW "  # before a line of JSON that a step prints for each of its rows


class Row(NamedTuple):
    """A line of the table: what was looked at, what was found, and what was asked for (nothing, if `asked` is empty)."""

    what: str
    found: str
    asked: str = ""
    passed: bool = True


def at_most(what: str, found: float, most: float) -> Row:
    """Return a row that passes where `found` is no more than `most`; not a number does not."""
    return Row(what, f"{found:.2g}", f"at most {most:g}", found <= most)


Check = Callable[[str, Path], Iterable[Row]]  # of a device, by name, in a folder of its own
