"""Progress of a training on standard error, in `log.txt` and in TensorBoard."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch

import alexnet
from alexnet.files import writing
from alexnet.network.device import processor
from alexnet.network.fast.fuse import fused_forms
from alexnet.progress import SECONDS_BETWEEN_LINES, format_duration, output_disabled, say
from alexnet.recipe import Train


class Monitor:
    """Writes to standard error, `log.txt` and TensorBoard, unless this process is silent. A context manager."""

    def __init__(self, folder: Path, device: torch.device, tensorboard: str) -> None:
        self.device, self._folder, self._board_folder = device, folder, folder / tensorboard
        self._process = psutil.Process()
        self._terminal = sys.stderr.isatty() and not output_disabled()
        self._last_shown = time.monotonic()
        self._board: Any = None

    def __enter__(self) -> Monitor:
        if output_disabled():
            return self
        from torch.utils.tensorboard import SummaryWriter  # importing it takes a second

        try:
            with writing(self._board_folder):
                self._board = SummaryWriter(str(self._board_folder))
        except UnicodeEncodeError:  # TensorBoard requires file names in UTF-8
            self.say("no TensorBoard curves, as the run folder's name is not UTF-8")
        self.usage()  # utilisation is measured from here
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._board is not None:
            with suppress(OSError):  # a full disk has been reported already
                self._board.close()

    def say(self, text: str) -> None:
        """Write a line to standard error and to `log.txt`."""
        if output_disabled():
            return
        if self._terminal:
            sys.stderr.write("\r\033[K")  # erase the progress line
        say(text)
        path = self._folder / "log.txt"
        with writing(path), path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def step(self, epoch: str, done: int, total: int, lr: float, loss: float, top1: float, seconds_left: float) -> None:
        """Show the progress of an epoch: on one line of a terminal, or as a line every 20 seconds in a file."""
        now = time.monotonic()
        if now - self._last_shown < (0.1 if self._terminal else SECONDS_BETWEEN_LINES):
            return
        self._last_shown = now
        text = f"{epoch}  {done}/{total}  lr {lr:.3g}  loss {loss:.3f}  top-1 {top1:.1%}  {format_duration(seconds_left)} left"
        if self._terminal:
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()
        else:
            say(text)

    def epoch(self, row: Mapping[str, Any], train: Train, seconds_left: float) -> None:
        """Write the line of a finished epoch, and its metrics to TensorBoard."""
        epochs = "" if train.minutes else f"/{train.epochs}"
        self._last_shown = time.monotonic()
        device = "CPU" if self.device.type == "cpu" else "GPU"
        busy = "" if row["utilisation"] is None else f" {row['utilisation']:.0%}"
        self.say(
            f"epoch {row['epoch']}{epochs}  lr {row['lr']:.3g}  "
            f"train loss {row['train_loss']:.3f} top-1 {row['train_top1']:.1%}  "
            f"val loss {row['val_loss']:z.3f} top-1 {row['val_top1']:.1%}  "
            f"{row['images_per_second']:.0f} images/s  {device}{busy} {row['memory_gb']:.1f} GB  "
            f"{format_duration(seconds_left)} left"
        )
        if self._board is None:
            return
        with writing(self._board_folder):
            for name in ("train_loss", "train_top1", "val_loss", "val_top1", "lr"):
                split, _, metric = name.rpartition("_")
                self._board.add_scalar(f"{metric}/{split}" if split else metric, row[name], row["epoch"])
            self._board.flush()

    def usage(self) -> dict[str, float | None]:
        """Return the device's `utilisation` since the last call, 0 to 1 (None if unknown), and `memory_gb` in use."""
        if self.device.type != "cuda":
            utilisation = self._process.cpu_percent() / 100 / (os.cpu_count() or 1)
            return {"utilisation": round(utilisation, 3), "memory_gb": round(self._process.memory_info().rss / 1e9, 2)}
        memory = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)
        try:
            return {"utilisation": torch.cuda.utilization(self.device) / 100, "memory_gb": memory}
        except Exception:  # pynvml is missing, or the driver does not report it: each raises its own error
            return {"utilisation": None, "memory_gb": memory}


def environment(device: torch.device, precision: str, processes: int = 1, parallel: str = "data") -> dict[str, Any]:
    """Return what results depend on besides the recipe: versions, processor, threads, processes, fused layers, git commit."""
    versions = {"alexnet": alexnet.__version__, "torch": str(torch.__version__)}  # with torch's build, such as +cu130
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions | {name: version(name) for name in ("numpy", "pillow", "safetensors")},
        "processor": processor().get("cpu_name") or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "parallel": parallel if processes > 1 else None,
        "device": str(device),
        "precision": precision,
        "fast_forms": fused_forms(device),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Return the commit of this source tree, with `+` if it has changes; None for an installed package."""
    here = Path(__file__).parent
    if "site-packages" in here.parts:
        return None
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=40"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, cwd=here, capture_output=True, encoding="utf-8", timeout=5, check=True).stdout.strip()
    return None
