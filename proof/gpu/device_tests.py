"""The tests of the suite that run on any device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from proof.gpu import Row

TESTS = "tests/test_device.py"


def suite(device: str, folder: Path) -> Iterator[Row]:
    """Run them with the device under test set in the environment."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "long or not long",
        "-p",
        "no:cacheprovider",
        f"--basetemp={folder / 'pytest'}",
        TESTS,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "ALEXNET_TEST_DEVICE": device})
    print(done.stdout, done.stderr[-2000:])
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield Row(line[:100], "failed", "passed", False)
    yield Row(TESTS, lines[-1] if lines else done.stderr[-200:], "passed", done.returncode == 0)


CHECKS = (suite,)
