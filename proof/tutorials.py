"""Train the four tutorials as written, to their last epoch, and print the results beside the authors'.

    python -m proof.tutorials [NAME…] [--minutes 12]

All trainings by default. Each continues where it stopped, so that they can be done in pieces: after `--minutes`, or Ctrl-C, all
are saved. On an accelerator all run at once, as their small batches do not fill it; on a CPU one after the other. Runs lie in
runs/tutorials; what the pages show of them (metrics, recipe, machine and final figures) in docs/tutorials/trained. Needs real
images in ALEXNET_TEST_DATA.
"""

import argparse
import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

import alexnet
from alexnet.data.sources import open_table
from alexnet.errors import AlexNetError
from alexnet.run import RunFolder, read_metrics, read_recipe

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "tutorials"
KEPT = ROOT / "docs" / "tutorials" / "trained"
SECONDS_TO_SAVE = 60
SECONDS_BETWEEN_LOOKS = 2
HELD_OUT = 5000  # validation images of CIFAR-10
PHOTOS = 513  # of tutorial 000
SPLITS = ("train", "val", "test")
ENVIRONMENT = ("python", "platform", "processor", "cores", "threads", "device", "precision", "versions")


def cifar10(data: Path) -> str:
    """Return the built-in CIFAR-10; its first 5,000 training images are held out."""
    return "cifar10"


def leaked_cifar10(data: Path) -> str:
    """Write CIFAR-10 with the leak of the authors' runs, which train on the 5,000 validation images too."""
    path = RUNS / "cifar10-leak.parquet"
    if not path.exists():
        table = open_table("cifar10", data)
        rows = [*range(len(table)), *table.rows("train")[:HELD_OUT].tolist()]
        columns = {
            "image": [png(table.pixels[row]) for row in rows],
            "label": [table.labels[table.targets[row]] for row in rows],
            "split": [*table.splits.tolist(), *["val"] * HELD_OUT],
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def png(pixels: np.ndarray) -> bytes:
    """Return an image as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def cats_dogs(data: Path) -> str:
    """Return the folder of 1,000 photos of cats and dogs, where the author had 25,000."""
    return str(data / "cats-dogs" / "train")


def imagenette(data: Path) -> str:
    """Write a list of 513 photos of Imagenette's ten classes, in place of the author's 513 of 16 classes."""
    path, classes = RUNS / "imagenette-513.csv", sorted((data / "imagenette" / "train").iterdir())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for i, folder in enumerate(classes):
            count = PHOTOS // len(classes) + (i < PHOTOS % len(classes))
            writer.writerows((photo, folder.name) for photo in sorted(folder.iterdir())[:count])
    return str(path)


class Training(NamedTuple):
    """A recipe, the function that prepares its images, and the author's figures at the end."""

    recipe: str
    prepare: Callable[[Path], str]
    original: str


TRAININGS = {
    "cats-dogs": Training("cats-dogs", cats_dogs, "training 75 %, validation 58.29 to 74.65 %"),
    "annotated": Training("annotated", imagenette, "training 81.82 %, validation 23.53 %"),
    "cifar10": Training("cifar10", cifar10, "test 74.39 %"),
    "cifar10-leak": Training("cifar10", leaked_cifar10, "validation 99.76 %, test 74.39 %"),
    "cifar10-1x1": Training("cifar10-1x1", cifar10, "test 74.39 %"),
    "cifar10-1x1-leak": Training("cifar10-1x1", leaked_cifar10, "validation 99.76 %, test 74.39 %"),
}


def command(name: str, data: Path) -> list[str]:
    """Return the command that starts a training, or resumes it."""
    folder, training = RunFolder(RUNS / name), TRAININGS[name]
    alexnet = [sys.executable, "-m", "alexnet", "train"]
    if folder.recipe.exists():
        return [*alexnet, "--resume", str(folder.path)]
    arguments = [training.prepare(data), "--recipe", training.recipe, "--out", str(folder.path), "--data-root", str(data)]
    return [*alexnet, *arguments, "--set", "train.save_epochs=", "--set", "train.tensorboard="]  # gigabytes; not installed


def start(name: str, data: Path) -> subprocess.Popen[bytes]:
    """Start or resume a training; its output goes to NAME.log."""
    with (RUNS / f"{name}.log").open("ab") as log:
        # In a session of its own it does not receive Ctrl-C; `train_all` passes it on.
        return subprocess.Popen(command(name, data), stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)


def train_all(names: list[str], data: Path, minutes: float, at_once: int) -> bool:
    """Train what is not finished, `at_once` at a time, until the time is up; return whether none failed."""
    waiting = [name for name in names if not RunFolder(RUNS / name).summary.exists()]
    end, running, seen, well = time.monotonic() + 60 * minutes, dict[str, subprocess.Popen[bytes]](), dict[str, str](), True
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                try:
                    running[name] = start(name, data)
                except (OSError, AlexNetError) as error:  # its images
                    well = False
                    print(f"{name} failed: {error}", flush=True)
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for name, process in list(running.items()):
                if seen.get(name) != (now := progress(name)):
                    print(f"{name}: {now}", flush=True)
                    seen[name] = now
                if process.poll() is not None:
                    del running[name]
                    if process.returncode:
                        well = False
                        print(f"{name} failed: see {RUNS / name}.log", flush=True)
    except KeyboardInterrupt:
        print("stopping: the next call continues", flush=True)
    finally:
        for process in running.values():
            process.terminate()  # it saves, as at Ctrl-C
        for process in running.values():
            process.wait(SECONDS_TO_SAVE)
    return well


def progress(name: str) -> str:
    """Return the last epoch of a training and its accuracies, or why its files cannot be read."""
    folder = RunFolder(RUNS / name)
    try:
        rows = read_metrics(folder, ("train_top1", "val_top1", "seconds")) if folder.metrics.exists() else []
        if not rows:
            return "epoch 0"
        last, epochs = rows[-1], read_recipe(folder).train.epochs
    except AlexNetError as error:
        return str(error)
    return (
        f"epoch {len(rows)} of {epochs}, {last['seconds'] / 3600:.2f} h, "
        f"training {last['train_top1']:.2%}, validation {last['val_top1']:.2%}"
    )


def keep(name: str) -> str:
    """Copy what the pages show of a run, and return its progress."""
    folder, kept, result = RunFolder(RUNS / name), KEPT / name, progress(name)
    if folder.metrics.exists():
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "metrics.csv").write_bytes(folder.metrics.read_bytes())
        recipe = read_recipe(folder)  # without the paths of this machine
        recipe = recipe.with_settings({"data.dataset": Path(recipe.data.dataset).name, "data.root": None})
        (kept / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    if folder.summary.exists():
        figures = final_figures(folder)
        (kept / "final.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        splits = ", ".join(f"{split} {figures[split]['top1']:.2%}" for split in SPLITS if split in figures)
        result += f"; finished, evaluated: {splits}"
    return result


def table_row(name: str) -> str:
    """Keep the results of a training, and return its row of the table."""
    try:
        result = keep(name)
    except AlexNetError as error:
        result = str(error)
    return f"| `{name}` | {TRAININGS[name].original} | {result} |"


def final_figures(folder: RunFolder) -> dict[str, Any]:
    """Evaluate a finished run on all its splits; return the accuracy and loss of each, and what the run was made with."""
    run = alexnet.load(folder.path)
    splits = {split: run.evaluate(split=split) for split in SPLITS if len(run.dataset()[0].names(split))}
    environment = json.loads(folder.environment.read_text(encoding="utf-8"))
    return {
        **{
            split: {"top1": result.top1, "loss": result.loss, "images": len(result.targets)} for split, result in splits.items()
        },
        "environment": {key: environment[key] for key in ENVIRONMENT},
    }


def main() -> int:
    """Train, keep the results, print the table; return 1 if a training failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRAININGS)}; all by default")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time; the next call continues")
    options = parser.parse_args()
    names = list(dict.fromkeys(options.names or TRAININGS))
    if unknown := set(names) - set(TRAININGS):
        parser.error(f"no training {sorted(unknown)[0]!r}: there are {', '.join(TRAININGS)}")
    data = Path(os.environ.get("ALEXNET_TEST_DATA", "")).resolve()
    if not os.environ.get("ALEXNET_TEST_DATA") or not data.is_dir():
        parser.error("ALEXNET_TEST_DATA names no folder of real images")
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored by default in a background process
        signal.signal(number, signal.default_int_handler)
    RUNS.mkdir(parents=True, exist_ok=True)
    at_once = len(names) if torch.accelerator.is_available() else 1
    try:
        well = train_all(names, data, options.minutes, at_once)
        print("| training | author | here |\n|---|---|---|")
        print("\n".join(table_row(name) for name in names))
    except KeyboardInterrupt:  # while it evaluates
        return 130
    return int(not well)


if __name__ == "__main__":
    sys.exit(main())
