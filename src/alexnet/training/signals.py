"""Ctrl-C and SIGTERM: stop after the current step, so that the training can be saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from alexnet.errors import Interrupted


class StopRequest:
    """Handles SIGINT and SIGTERM while it is entered.

    Unless `deferred`, a signal raises `Interrupted` at once. If `deferred`, the first signal only sets `code` to the exit
    code, 130 or 143; a second one raises `Interrupted`.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self.deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.code is not None or not self.deferred:
            raise Interrupted("interrupted", 128 + number)
        self.code = 128 + number
