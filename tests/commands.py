"""Run the command line: in this process, which is fast, or in separate processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from proof.torture import sets
from torch.distributed import TCPStore

from alexnet import cli
from alexnet.cli import train
from conftest import TINY

TINY_SETS = sets(TINY)
SECONDS = 120  # seconds allowed for a process; only one that hangs takes this long

# Separate processes are forked from one that has already imported torch, where the system supports that.
_SERVER = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
PROCESSES: Any = multiprocessing.get_context(_SERVER)
PROCESSES.set_forkserver_preload(
    ["alexnet.api", "alexnet.cli", "alexnet.training.train", "alexnet.report.report", "hypothesis"]
)


def run(*arguments: object, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `alexnet` with these arguments in this process."""
    given, out, err = (io.TextIOWrapper(io.BytesIO(b), "utf-8", newline="\n") for b in (stdin.encode(), b"", b""))
    words, threads = list(map(str, arguments)), torch.get_num_threads()
    with (
        patch.object(sys, "argv", ["alexnet", *words]),
        patch.object(sys, "stdin", given),
        patch.object(train, "STARTED", time.monotonic()),
        patch.dict(os.environ, {"COLUMNS": "80"}),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        exit_code = _exit_code(cli.main)
    torch.set_num_threads(threads)  # which --threads changes
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in (_flushed(out), _flushed(err)))
    assert exit_code == code, stderr
    return subprocess.CompletedProcess(words, exit_code, stdout, stderr)


def _exit_code(main: Callable[[], None]) -> int:
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _flushed(stream: io.TextIOWrapper) -> Any:
    stream.flush()
    return stream


def error(*arguments: object) -> str:
    """Run `alexnet`, which must fail, and return its error line."""
    return only_line(run(*arguments, code=1))


def only_line(process: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a failed command, which must be one line."""
    assert process.stdout == ""
    lines = process.stderr.splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("alexnet: ")
    return lines[0]


def python(*arguments: object, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, such as `-m alexnet`, in a separate process."""
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=SECONDS)
    assert process.returncode == code, process.stderr
    return process


class Started:
    """A process that runs a function, or `alexnet` with these arguments; it writes into files of `folder`.

    Attributes:
        process: a `multiprocessing.Process`, whose `exitcode` is negative where a signal ended it.
    """

    def __init__(self, folder: Path, main: Callable[..., None] | None, *arguments: object, **environment: object) -> None:
        folder.mkdir(parents=True)
        self._out, self._err = folder / "stdout", folder / "stderr"
        names = {name: str(value) for name, value in {**os.environ, **environment}.items()}
        given = (main, list(map(str, arguments)), names, self._out, self._err)
        self.process = PROCESSES.Process(target=_child, args=given, daemon=True)
        self.process.start()

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        return self._err.read_text() if self._err.exists() else ""

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition to hold while the process runs."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process.is_alive(), self.stderr
            assert time.monotonic() < deadline, "it hangs"
            time.sleep(0.005)

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Wait for the process to end, and check its exit code."""
        self.process.join(SECONDS)
        assert self.process.exitcode == code, f"exit code {self.process.exitcode}: {self.stderr}"
        return subprocess.CompletedProcess([], code, self._out.read_text(), self.stderr)


def _child(main: Callable[..., None] | None, arguments: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    """Become a process that looks as if started with `python -m alexnet`."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # a forked process has one; nothing was computed before it
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        stream.flush()
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    train.STARTED = time.monotonic()
    sys.argv = ["alexnet", *arguments]
    if main is None:
        cli.main()
    else:
        main(*arguments)


def start(folder: Path, *arguments: object, **environment: object) -> Started:
    """Start `alexnet` with these arguments in a separate process; its output goes to files in `folder`, which is created."""
    return Started(folder, None, *arguments, **environment)


def together(
    count: int, folder: Path, *arguments: object, main: Callable[..., None] | None = None, code: int = 0, **environment: object
) -> subprocess.CompletedProcess[str]:
    """Run `alexnet`, or a function, in `count` processes as torchrun does; return the output of all."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    own = [{**group, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, **environment} for rank in range(count)]
    processes = [Started(folder / str(rank), main, *arguments, **names) for rank, names in enumerate(own)]
    results = [process.end(code) for process in processes]
    stdout, stderr = ("".join(getattr(result, name) for result in results) for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess([], code, stdout, stderr)
