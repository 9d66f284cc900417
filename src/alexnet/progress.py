"""Progress on standard error, with the time left, for anything that may take longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from alexnet.errors import printable

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 20.0  # where there is no terminal, a line now and then

_silent = False


def silence() -> None:
    """Say and show nothing from here on: of the processes that train together, the first speaks."""
    global _silent
    _silent = True


def silent() -> bool:
    """Whether `silence` was called."""
    return _silent


def say(text: str) -> None:
    """Write a line to standard error."""
    if not _silent:
        print(printable(text), file=sys.stderr, flush=True)


def track(items: Iterable[T], text: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`; meanwhile show `text`, a bar and the time left (a terminal), or a line every 20 s (a file)."""
    if _silent:
        yield from items
        return
    if sys.stderr.isatty():
        yield from _bar(items, text, total)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            last = now
            left = f", {clock((total - done) * (now - start) / done)} left" if total else ""
            say(f"{text}: {done:,}{f' of {total:,}' if total else ''}{left}")


def _bar(items: Iterable[T], text: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=text)


def clock(seconds: float) -> str:
    """Return 75.2 as `1:15`, 4000 as `1:06:40`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
