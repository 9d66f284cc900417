"""Messages and progress on standard error, for anything that may take longer than two seconds."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from alexnet.errors import printable

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 20.0  # when standard error is not a terminal

_silent = False


def disable_output() -> None:
    """Print nothing from now on, as in distributed training, where only the main process prints."""
    global _silent
    _silent = True


def output_disabled() -> bool:
    """Return whether `disable_output` was called."""
    return _silent


def say(text: str) -> None:
    """Write a line to standard error."""
    if not _silent:
        print(printable(text), file=sys.stderr, flush=True)


def track(items: Iterable[T], text: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show the progress: a bar in a terminal, else a line every 20 seconds, with the time left."""
    if _silent:
        yield from items
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield from progress.track(items, total=total, description=text)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            last = now
            left = f", {format_duration((total - done) * (now - start) / done)} left" if total else ""
            say(f"{text}: {done:,}{f' of {total:,}' if total else ''}{left}")


def format_duration(seconds: float) -> str:
    """Format a duration: 75.2 as `1:15`, 4000 as `1:06:40`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
