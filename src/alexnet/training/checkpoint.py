"""Where a training stands, on disk: safetensors and JSON, one folder for both.

A checkpoint is written to `checkpoint/next`, flushed, and renamed to `checkpoint/last`; the one before is `checkpoint/before`
until then, and is used where `last` is missing or does not check out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from alexnet.errors import RunError
from alexnet.run import sha256, write, write_text

Tensors = dict[str, Tensor]


def save(run: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write a checkpoint of the run in folder `run`.

    Raises:
        RunError: the disk is full or the folder cannot be written; the checkpoint before is intact.
    """
    folder = run / "checkpoint"
    following, last, before = folder / "next", folder / "last", folder / "before"
    try:
        shutil.rmtree(following, ignore_errors=True)
        following.mkdir(parents=True)
        write(following / "state.safetensors", lambda part: safetensors.torch.save_file(tensors, part))
        digest = sha256(following / "state.safetensors")
        write_text(following / "state.json", json.dumps({**state, "sha256": digest}, indent=2))
        if last.exists():
            shutil.rmtree(before, ignore_errors=True)
            last.rename(before)
        following.rename(last)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error


def exists(run: Path) -> bool:
    """Tell whether the run in folder `run` has a checkpoint, good or damaged."""
    return any((run / "checkpoint" / name).exists() for name in ("last", "before"))


def load(run: Path) -> tuple[Tensors, dict[str, Any]] | None:
    """Return the newest checkpoint that checks out; None where there is none.

    Raises:
        RunError: there are checkpoints, but all are damaged.
    """
    damaged = []
    for folder in (run / "checkpoint" / "last", run / "checkpoint" / "before"):
        if not folder.exists():
            continue
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if state.pop("sha256") == sha256(folder / "state.safetensors"):
                return safetensors.torch.load_file(folder / "state.safetensors"), state
        except (OSError, ValueError, KeyError, AttributeError, safetensors.SafetensorError):
            pass
        damaged.append(folder)
    if damaged:
        raise RunError(f"{damaged[0]} is damaged, and there is no good one before it: train again into another --out")
    return None


def remove(run: Path) -> None:
    """Remove the checkpoints of a run that is done."""
    shutil.rmtree(run / "checkpoint", ignore_errors=True)
