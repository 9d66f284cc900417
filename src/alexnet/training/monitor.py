"""Progress of a training on standard error, in `log.txt` and in TensorBoard, and the use of its device."""

import math
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
from typing import Any, Self

import psutil
import torch

import alexnet
from alexnet.errors import counted, shell_quote, truncate
from alexnet.files import writing
from alexnet.network.device import backend_settings, processor
from alexnet.network.fast.fuse import fused_forms
from alexnet.progress import SECONDS_BETWEEN_LINES, format_duration, output_disabled, say
from alexnet.recipe import Train
from alexnet.training.compiled import compiled_form
from alexnet.training.tensorboard import TensorBoard


class Monitor:
    """Writes to standard error, `log.txt` and TensorBoard, unless this process is silent. A context manager."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device, self._folder = device, folder
        self.tensorboard: TensorBoard | None = None
        self._process, self._utilisation_missing = psutil.Process(), False
        self._others, self._others_named = 0.0, False  # cores that other processes use
        self._terminal = sys.stderr.isatty() and not output_disabled()
        self._last_shown = time.monotonic()

    def __enter__(self) -> Self:
        self.usage()  # utilisation is measured from here
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.tensorboard:
            self.tensorboard.close()

    def open_tensorboard(self, folder: Path, first_epoch: int) -> None:
        """Start TensorBoard's files, and say how to see them or why there are none."""
        if output_disabled():
            return
        try:
            self.tensorboard = TensorBoard(folder, first_epoch)
        except ImportError as error:
            self.say(f"no TensorBoard curves, as a package is missing ({error}): pip install tensorboard")
        except UnicodeEncodeError:
            self.say("no TensorBoard curves, as the run folder's name is not UTF-8")
        else:
            self.say(f"curves: tensorboard --logdir {shell_quote(folder)} --port 6006")

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
        if row["epoch"] > 1:  # until the end of the first, processes of ours may have decoded images
            self._name_others()
        if self.tensorboard:
            self.tensorboard.epoch(row)

    def _name_others(self) -> None:
        """Say once that other processes slow the training down more than they need to.

        By default, threads that wait for others take cores from them; the command line lets them sleep (docs/log.md).
        """
        threads, cores = torch.get_num_threads(), os.cpu_count() or 1
        free = max(1, math.floor(cores - self._others + 0.25))
        sleeping = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
        if self.device.type == "cpu" and self._others > 0.5 and free < threads and not sleeping and not self._others_named:
            self._others_named = True
            used = f"other processes use {self._others:.1f} of {counted(cores, 'core')}, and waiting threads keep theirs busy"
            self.say(f"{used}: training may be twice as fast if OMP_WAIT_POLICY=passive is set when Python starts")

    def head(self, row: Mapping[str, Any]) -> None:
        """Write the line of a fitted head, whose metrics are those of epoch 0."""
        metrics = (f"{split} loss {row[f'{split}_loss']:z.3f} top-1 {row[f'{split}_top1']:.1%}" for split in ("train", "val"))
        self.say(f"epoch 0, the head as fitted  {'  '.join(metrics)}")
        if self.tensorboard:
            self.tensorboard.epoch(row)

    def usage(self) -> dict[str, float | None]:
        """Return the device's `utilisation` since the last call, 0 to 1 (None if unknown), and `memory_gb` in use.

        The utilisation of an accelerator is its driver's latest sample. If there is none, the first call says why.
        """
        if self.device.type == "cpu":
            cores = os.cpu_count() or 1
            utilisation = self._process.cpu_percent() / 100 / cores
            self._others = (psutil.cpu_percent() / 100 - utilisation) * cores
            return {"utilisation": round(utilisation, 3), "memory_gb": round(self._process.memory_info().rss / 1e9, 2)}
        memory = 0
        with suppress(RuntimeError):  # a backend that does not count it
            memory = torch.accelerator.max_memory_allocated(self.device)
        return {"utilisation": self._accelerator_utilisation(), "memory_gb": round(memory / 1e9, 2)}

    def _accelerator_utilisation(self) -> float | None:
        """Return the fraction of time that the accelerator was busy, as its driver measured it last."""
        module = torch.get_device_module(self.device)
        try:
            if not hasattr(module, "utilization"):
                raise NotImplementedError(f"PyTorch cannot measure it on {self.device.type}")
            return float(module.utilization(self.device)) / 100
        except Exception as error:  # every backend and driver raises its own
            if not self._utilisation_missing:
                reason = truncate((str(error).splitlines() or [type(error).__name__])[0], 200)
                install = ": pip install nvidia-ml-py" if "nvidia-ml-py" in reason else ""  # others name theirs, or have none
                self.say(f"GPU utilisation is not shown ({reason}){install}")
            self._utilisation_missing = True
            return None


def environment(
    device: torch.device, precision: str, processes: int = 1, parallel: str = "data", *, compiled: bool = False
) -> dict[str, Any]:
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
        "backend_settings": backend_settings(device),
        "fast_forms": fused_forms(device),
        "compiled": compiled_form(device) if compiled else None,
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
