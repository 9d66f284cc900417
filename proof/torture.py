"""Kill training at random moments, repeatedly: every run must end bit-identical to a run that was never stopped.

    python -m proof.torture [--kills 200] [--full-kills 5] [--seed N]

A kill is SIGKILL, at a random moment of a chosen phase of the training; a thread of the child process records the phase of its
main thread. There are several short runs of a narrow network, two at a time, then one at full width. Prints a table.
"""

from __future__ import annotations

import argparse
import csv
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from proof.pictures import class_folders

# The phases of a training, by function, innermost first.
PHASES = {
    "_build": "caching",
    "save": "saving",
    "save_model": "saving",
    "write_json": "saving",
    "write_metrics": "saving",
    "write_report": "report",
    "evaluate_split": "validation",
    "train_step": "step",
}
NAMES = ("start", *dict.fromkeys(PHASES.values()))
TIME_COLUMNS = {"seconds", "images_per_second", "utilisation", "memory_gb"}
NARROW = {"model.width": 1 / 16, "images.input": 67, "train.batch_size": 16, "train.epochs": 6, "data.workers": 2}
KILLS_A_RUN = 20
SIZE = (160, 160)  # images large enough that decoding takes a while


@dataclass
class Outcome:
    """The result of one run: kills by phase, and what was wrong at the end."""

    kills: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def torture(folder: Path, command: list[str], kills: int, seed: int) -> Outcome:
    """Train by `command`, the arguments of `alexnet train`, and kill it that many times; compare with an uninterrupted run.

    `folder` is empty or new; it holds the runs and their cache of decoded images. If a run ends before the last kill, another
    one follows.
    """
    chance, outcome = random.Random(seed), Outcome()  # noqa: S311
    folder.mkdir(exist_ok=True)
    whole = folder / "whole"
    _end(_start(folder, [*command, "--out", str(whole)]))
    number = 0
    while (left := kills - outcome.kills.total()) > 0:
        run, number = folder / f"killed-{number}", number + 1
        for decoded in folder.glob("cache/*-*/*"):  # so that building the cache is killed too; compiled kernels stay
            decoded.unlink()
        for _ in range(min(KILLS_A_RUN, left)):
            if (run / "report.html").exists():
                break
            phase = _kill(folder, _start(folder, _arguments(run, command)), chance, outcome)
            if phase == "":
                break
            outcome.kills[phase] += 1
        if not (run / "report.html").exists():
            _end(_start(folder, _arguments(run, command)))
        print(f"{folder.name}: killed {outcome.kills.total()} of {kills} times", file=sys.stderr, flush=True)
        outcome.faults += [f"{run.name}: {fault}" for fault in _differences(run, whole, folder / "cache")]
    return outcome


def _arguments(run: Path, command: list[str]) -> list[str]:
    return ["--resume", str(run)] if (run / "recipe.toml").exists() else [*command, "--out", str(run)]


def _start(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    phases = folder / "phase"
    phases.write_bytes(b"\0")
    environment = {**os.environ, "ALEXNET_CACHE": str(folder / "cache"), "PHASES": str(phases)}
    child = [sys.executable, "-X", "faulthandler", "-m", "proof.torture", "child", "train", *arguments]
    root = Path(__file__).parent.parent
    return subprocess.Popen(child, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {errors[:3000]}")


def _kill(folder: Path, process: subprocess.Popen[str], chance: random.Random, outcome: Outcome) -> str:
    """Kill a training in a random phase, or in another if that does not occur; return the phase, "" if it was over."""
    phases = folder / "phase"
    cached = any(folder.glob("cache/*-*/*.u8"))
    wanted = chance.choice([name for name in NAMES if not (cached and name == "caching")])
    patience = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < patience and NAMES[phases.read_bytes()[0]] != wanted:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 2.5) if wanted == "start" else chance.uniform(0, 0.05))
    phase = NAMES[phases.read_bytes()[0]]
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if process.returncode == -signal.SIGKILL:
        return phase
    if process.returncode:
        outcome.faults.append(f"exit code {process.returncode}, by itself: {errors[:3000]}")
    return ""


def _differences(run: Path, whole: Path, cache: Path) -> list[str]:
    """Return the differences from the run that was never stopped."""
    faults = [f"left behind: {path}" for root in (run, cache) for path in root.rglob("*") if path.suffix in (".part", ".lock")]
    faults += ["its checkpoints are still there"] * (run / "checkpoint").exists()
    killed, wanted = _results(run), _results(whole)
    return faults + [f"other {name}" for name in wanted if killed[name] != wanted[name]]


def _results(run: Path) -> dict[str, object]:
    """Return the files of a run, without anything that depends on the time."""
    with (run / "metrics.csv").open() as file:
        metrics = [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in csv.DictReader(file)]
    summary = json.loads((run / "summary.json").read_text()) | {"run": "", "seconds": 0}
    return {"weights": (run / "model.safetensors").read_bytes(), "metrics": metrics, "summary": summary}


def child() -> None:
    """Run the command line, while a thread writes the current phase to the file in PHASES."""
    main = threading.main_thread().ident
    assert main is not None
    with Path(os.environ["PHASES"]).open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 1)

    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            frame, phase = sys._current_frames().get(main), "start"
            while frame is not None and phase == "start":
                phase = PHASES.get(frame.f_code.co_name, "start") if "alexnet" in frame.f_code.co_filename else "start"
                frame = frame.f_back
            shared[0] = NAMES.index(phase)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        from alexnet import cli

        sys.argv = ["alexnet", *sys.argv[2:]]
        cli.main()
    finally:  # it holds frames of the main thread, and so tensors, which must not outlive the interpreter
        over.set()
        watcher.join()


def command(data: str, settings: Mapping[str, object], threads: int) -> list[str]:
    """Return the arguments of `alexnet train` for a short run."""
    return [data, "--threads", str(threads), *sets(settings)]


def sets(settings: Mapping[str, object]) -> list[str]:
    """Return settings as command-line options."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def main() -> int:
    """Kill the requested number of times, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Kill training at random moments; see the file's head.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--full-kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        photos = str(class_folders(folder / "photos", 120, size=SIZE))
        arguments, half = command(photos, NARROW, 1), -(-options.kills // 2)
        halves = [pool.submit(torture, folder / str(i), arguments, half, options.seed + i) for i in range(2)]
        narrow = [half.result() for half in halves]
        digits = command("digits", {"train.epochs": 2, "train.max_images": 0}, 2)
        full = torture(folder / "full", digits, options.full_kills, options.seed) if options.full_kills else Outcome()
    kills = sum((outcome.kills for outcome in narrow), Counter[str]())
    print(f"{'killed in':12}{'narrow':>8}{'full width':>12}")
    for phase in NAMES:
        print(f"{phase:12}{kills[phase]:8}{full.kills[phase]:12}")
    faults = [fault for outcome in (*narrow, full) for fault in outcome.faults]
    print(f"{'all':12}{kills.total():8}{full.kills.total():12}   in {time.monotonic() - began:.0f} s")
    print("\n".join(faults) or "every run ended with the bytes of the one that was never stopped, and left nothing behind")
    return 1 if faults else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child()
    else:
        sys.exit(main())
