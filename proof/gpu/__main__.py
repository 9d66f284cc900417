"""Run all steps and print a table in Markdown, then one line of JSON: `python -m proof.gpu [STEP…]`.

Needs Python and PyTorch. Missing libraries are taken from the wheels in `build/gpu-wheels`, if there are any (`make
gpu-wheels`, on a machine with a network). ALEXNET_TEST_DEVICE selects a device other than the first accelerator.

Each step is a process, `python -m proof.gpu child STEP DEVICE FOLDER`, that prints a line of JSON for each row.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from proof.gpu import MARK, Check, Row

HOME = Path(__file__).parents[2]
WHEELS = HOME / "build" / "gpu-wheels"
SECONDS = 690.0  # for all of it
STEPS = {  # time limits in seconds, by step, which add up to more than all of it; the most informative steps come first
    "machine": 60,
    "training": 100,
    "resume": 100,
    "cifar": 110,
    "speed": 170,
    "waiting": 40,
    "response_norm": 40,
    "compiled": 60,
    "digits": 60,
    "device_tests": 100,
    "memory": 60,
    "use": 90,
}
FIND = "import torch; print(torch.accelerator.current_accelerator(check_available=True) or 'cpu')"


def environment(site: Path) -> dict[str, str]:
    """Return the environment of the steps; wheels, if there are any, are unpacked into `site`."""
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    if wheels:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site)]
        done = subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], capture_output=True, text=True)
        print(f"{len(wheels)} wheels unpacked" if done.returncode == 0 else f"wheels: {done.stderr.strip()[-500:]}")
    paths = [HOME / "src", HOME, *([site] if wheels else []), os.environ.get("PYTHONPATH", "")]
    cache = os.environ.get("ALEXNET_CACHE", str(site.parent / "cache"))
    changes = {
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
        "ALEXNET_CACHE": cache,
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **changes}


def run(name: str, device: str, folder: Path, environment: dict[str, str], limit: float) -> list[dict[str, Any]]:
    """Run a step for `limit` seconds at most; return its rows, and one more that reports how it ended if it failed."""
    log = folder / f"{name}.log"
    ended = ""
    with log.open("w", encoding="utf-8") as out:
        command = [sys.executable, "-m", "proof.gpu", "child", name, device, str(folder)]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=HOME)
        try:
            code = process.wait(timeout=max(1.0, limit))
            ended = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ended = f"stopped after {limit:.0f} s"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]
    if ended or not rows:
        rows.append({"what": "the step", "found": ended or "no rows", "asked": "to its end", "passed": False})
    if not all(row["passed"] for row in rows):
        print("\n".join(f"  | {line[:240]}" for line in lines[-40:] if not line.startswith(MARK)), flush=True)
    return rows


def print_row(row: Row) -> None:
    """Print a row at once, so that it is not lost if a later step fails."""
    print(MARK + json.dumps(row._asdict()), flush=True)


def child(name: str, device: str, folder: Path) -> None:
    """Run the checks of a step, each regardless of earlier failures."""
    checks: tuple[Check, ...] = importlib.import_module(f"proof.gpu.{name}").CHECKS
    for check in checks:
        place = folder / f"{name}-{check.__name__}"
        place.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            try:
                for row in check(device, place):
                    print_row(row)
            except Exception as error:
                traceback.print_exc()
                print_row(Row(check.__name__, f"{type(error).__name__}: {str(error)[:300]}", "no error", False))
        for text in sorted({str(warning.message).splitlines()[0][:200] for warning in caught}):
            print(f"warning in {check.__name__}: {text}", file=sys.stderr)


def main(names: list[str]) -> int:
    """Run the given steps, or all; return 0 if all passed."""
    began = time.monotonic()
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="alexnet-gpu-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        around = environment(folder / "site")
        found = subprocess.run([sys.executable, "-c", FIND], capture_output=True, text=True, env=around, cwd=HOME)
        device = os.environ.get("ALEXNET_TEST_DEVICE") or found.stdout.strip() or "cpu"
        if found.returncode:
            print(f"torch does not say what it finds: {found.stderr.strip()[-300:]}")
        print(f"device: {device}" if device != "cpu" else "no GPU found: all steps run on the CPU, narrower", flush=True)
        for step in names or STEPS:
            start = time.monotonic()
            limit = min(STEPS[step], SECONDS - (start - began))
            rows = [{"what": "the step", "found": "no time was left", "asked": "to its end", "passed": False}]
            if limit >= 5:
                rows = run(step, device, folder, around, limit)
            seconds = round(time.monotonic() - start, 1)
            for row in rows:
                table.append({"step": step, "device": device, **row, "seconds": seconds})
                asked = f"  ({row['asked']})" if row["asked"] else ""
                print(f"{'pass' if row['passed'] else 'FAIL'}  {step:12}  {row['what']:58}  {row['found']}{asked}", flush=True)
            print(f"      {step}: {seconds} s", flush=True)
    failed = sum(not row["passed"] for row in table)
    total = round(time.monotonic() - began, 1)
    print("\n| step | what | result |\n|---|---|---|")
    print(
        "\n".join(f"| {row['step']} | {row['what']} | {row['found']}{'' if row['passed'] else ' (FAILED)'} |" for row in table)
    )
    print(f"\n{len(table) - failed} of {len(table)} passed on {device} in {total} s")
    print(json.dumps({"proof": "gpu", "device": device, "failed": failed, "seconds": total, "rows": table}))
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        sys.exit(main(sys.argv[1:]))
