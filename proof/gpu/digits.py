"""The README's first command, as users type it: real digits, a report, and then an evaluation of the run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proof.gpu import Row


def command(*arguments: object) -> Any:
    """Run a command with `--json` and return the parsed output."""
    done = subprocess.run([sys.executable, "-m", "alexnet", *map(str, arguments), "--json"], capture_output=True, text=True)
    print(done.stderr[-3000:])
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)


def digits(device: str, folder: Path) -> Iterator[Row]:
    """Train for three epochs, and evaluate."""
    run = folder / "run"
    found = command("train", "digits", "--epochs", 3, "--out", run, "--device", device)
    top1 = found["test"]["top1"]
    yield Row(
        "digits, 3 epochs: top-1 of the test set", f"{top1:.1%} in {found['seconds']:.0f} s", "95 % or more", top1 >= 0.95
    )
    again = command("evaluate", run, "--device", device)
    yield Row("evaluate says the same", f"{again['top1']:.4f}", f"{top1:.4f}", abs(again["top1"] - top1) < 1e-3)
    yield Row("report.html", str((run / "report.html").exists()), "True", (run / "report.html").exists())


CHECKS = (digits,)
