"""The command line in a process of its own, as people run it."""

from __future__ import annotations

import subprocess
import sys

from proof.torture import sets

from conftest import TINY

TINY_SETS = sets(TINY)


def run(*arguments: object, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alexnet", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def error(*arguments: object) -> str:
    """Return the one line that a command which must fail says."""
    done = run(*arguments, code=1)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("alexnet: ")
    return lines[0]
