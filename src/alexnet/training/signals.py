"""Ctrl-C and SIGTERM: stop at the next step, so that it can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from alexnet.errors import Interrupted


class StopRequest:
    """Notes a signal instead of breaking off; `code` is then the exit code, 130 or 143. A second one breaks off at once.

    Outside `deferred`, where there is nothing to save, a signal raises `Interrupted` where it arrives.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self.deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.code is not None or not self.deferred:
            raise Interrupted("interrupted", 128 + number)
        self.code = 128 + number
