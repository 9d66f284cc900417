"""The suite's tests that run on any device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from proof.gpu import Row


def suite(device: str, folder: Path) -> Iterator[Row]:
    """Run `tests/test_device.py` with the device under test in the environment."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--basetemp={folder / 'pytest'}",
        "tests/test_device.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "ALEXNET_TEST_DEVICE": device})
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    for line in lines:
        print(line)
    print(done.stderr[-2000:], file=sys.stderr)
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    for line in failed:
        yield Row(line[:100], "failed", "passed", False)
    yield Row("tests/test_device.py", lines[-1] if lines else done.stderr[-200:], "passed", done.returncode == 0)


CHECKS = (suite,)
