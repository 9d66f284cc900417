"""Processes under test: a server, and the memory that a process uses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import psutil


class Server(NamedTuple):
    """A running `alexnet serve`."""

    process: subprocess.Popen[str]
    port: int
    errors: IO[str]

    def log(self) -> str:
        """Return what the server has written to standard error so far."""
        self.errors.seek(0)
        return self.errors.read()


@contextmanager
def served(run: Path) -> Iterator[Server]:
    """Run `alexnet serve RUN` while the context lasts; it must then end with exit code 143."""
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "alexnet", "serve", str(run), "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        address = re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())
        server = Server(process, int(address[1]) if address else 0, errors)
        if address is None:
            raise SystemExit(f"the server did not start:\n{server.log()}")
        try:
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(120)
        if os.name == "posix" and code != 143:
            raise SystemExit(f"the server ended with exit code {code}:\n{server.log()[-2000:]}")


def memory(pid: int, anonymous: bool = False) -> int:
    """Return the bytes that a process and its children use; `anonymous` leaves out memory-mapped files, on Linux only."""
    total = 0
    process = psutil.Process(pid)
    for each in (process, *process.children(recursive=True)):
        try:
            used = each.memory_info()
        except psutil.Error:  # it has just ended
            continue
        total += used.rss - used.shared if anonymous else used.rss
    return total


@contextmanager
def watched_memory(pid: int, every: float = 0.2) -> Iterator[list[tuple[float, int]]]:
    """Yield a list to which (seconds, bytes) are appended while the context lasts, and once at its end."""
    samples: list[tuple[float, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every):
            samples.append((time.monotonic(), memory(pid)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield samples
    finally:
        over.set()
        watcher.join()
        samples.append((time.monotonic(), memory(pid)))
