"""A server in a process of its own, and its memory, for load.py and attack.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil


class Server:
    """`alexnet serve RUN` while the context lasts; `port` is where, `log` what it wrote to standard error."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the end

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "alexnet", "serve", str(self._run), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self.process.stdout is not None
        said = re.search(r"http://127.0.0.1:(\d+)", self.process.stdout.readline())
        if said is None:
            raise SystemExit(f"the server did not start:\n{self.log()}")
        self.port = int(said[1])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.code = self.process.wait(120)
        if os.name == "posix" and self.code != 143 and error is None:
            raise SystemExit(f"the server ended with exit code {self.code}:\n{self.log()[-2000:]}")
        self._log.close()

    def log(self) -> str:
        """Return what the server has written so far."""
        self._log.seek(0)
        return self._log.read()


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
