"""A server in a process of its own, for load.py and attack.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType


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
