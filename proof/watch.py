"""The memory that a process takes, and its children with it."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import psutil


class Watch:
    """Notes a process's memory, its children's with it, while the context lasts: `samples` of seconds and bytes."""

    def __init__(self, pid: int, every: float = 0.2) -> None:
        self._process, self._every, self._end = psutil.Process(pid), every, threading.Event()
        self.samples: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        self.samples.append((time.monotonic(), self.now()))

    def now(self) -> int:
        """Return bytes in use."""
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it has just ended
                continue
        return total

    def _run(self) -> None:
        while not self._end.wait(self._every):
            self.samples.append((time.monotonic(), self.now()))
