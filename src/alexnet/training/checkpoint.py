"""Where a training stands, on disk: safetensors and JSON, one folder for both.

A checkpoint is written to `checkpoint/next`, flushed, and renamed to `checkpoint/last`; the one before stays as
`checkpoint/before`, and is used where `last` is missing or does not check out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from alexnet.errors import RunError, reason_of
from alexnet.run import sync_folder, write, write_text

Tensors = dict[str, Tensor]
VERSION = 1


def save(run: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write a checkpoint of the run in folder `run`.

    Raises:
        RunError: the disk is full, or the folder is gone or cannot be written; the checkpoints before are intact.
    """
    folder = run / "checkpoint"
    following, last, before = folder / "next", folder / "last", folder / "before"
    try:
        shutil.rmtree(following, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        following.mkdir()
        write(following / "state.safetensors", lambda part: safetensors.torch.save_file(tensors, part))
        state = {"version": VERSION, **state}
        write_text(following / "state.json", json.dumps({"sha256": _digest(following, state), "state": state}, indent=2))
        if last.exists():
            shutil.rmtree(before, ignore_errors=True)
            last.rename(before)
        following.rename(last)
        sync_folder(folder)
    except RunError:
        shutil.rmtree(following, ignore_errors=True)
        raise
    except OSError as error:
        raise RunError(f"cannot write {folder}: {reason_of(error)}") from error


def exists(run: Path) -> bool:
    """Tell whether the run in folder `run` has a checkpoint, good or damaged."""
    return any((run / "checkpoint" / name).exists() for name in ("last", "before"))


def load(run: Path) -> tuple[Tensors, dict[str, Any]] | None:
    """Return the newest checkpoint that checks out; None where there is none.

    Raises:
        RunError: there are checkpoints, but all are damaged, or a newer version wrote them.
    """
    damaged = []
    for folder in (run / "checkpoint" / "last", run / "checkpoint" / "before"):
        if not folder.exists():
            continue
        # Whatever a damaged file makes of JSON: other types, too deep, no text at all. MemoryError: a length that lies.
        with suppress(OSError, ValueError, TypeError, LookupError, RecursionError, MemoryError, safetensors.SafetensorError):
            content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            state: dict[str, Any] = content["state"]
            if content["sha256"] == _digest(folder, state):
                if state.pop("version") != VERSION:
                    raise RunError(f"{folder} was written by another version of alexnet: go on with that one")
                # Copied: Windows renames no folder in which a file is mapped, and this one is to become `before`.
                mapped = safetensors.torch.load_file(folder / "state.safetensors")
                return {name: tensor.clone() for name, tensor in mapped.items()}, state
        damaged.append(folder)
    if damaged:
        raise RunError(f"{damaged[0]} is damaged, and there is no good one before it: train again into another --out")
    return None


def remove(run: Path) -> None:
    """Remove the checkpoints of a run that is done."""
    shutil.rmtree(run / "checkpoint", ignore_errors=True)


def _digest(folder: Path, state: dict[str, Any]) -> str:
    """Return the SHA-256 of the tensors' file and the state together."""
    with (folder / "state.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()
