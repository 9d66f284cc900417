"""Check and measure everything that depends on a GPU, in at most 12 minutes: `python -m proof.gpu`.

Each step runs in a separate process with a time limit, and a failure does not stop the others. Without a GPU, everything runs
on the CPU with a narrower network and fewer images, so that all of the code can be tried before a GPU is available.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

MARK = "ROW "  # precedes each line of JSON that a step prints, one per row


class Row(NamedTuple):
    """A row of the table: what was checked, the result, and the requirement (none if `asked` is empty)."""

    what: str
    found: str
    asked: str = ""
    passed: bool = True


def at_most(what: str, found: float, most: float) -> Row:
    """Return a row that passes if `found` is at most `most`; NaN fails."""
    return Row(what, f"{found:.2g}", f"at most {most:g}", found <= most)


Check = Callable[[str, Path], Iterable[Row]]  # the checks of a step: functions of a device's name and a folder
