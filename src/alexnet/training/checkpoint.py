"""Checkpoints: the state of a training on disk, as safetensors and JSON.

A checkpoint is written to `checkpoint/next`, flushed, and renamed to `checkpoint/last`; the one before stays as
`checkpoint/before`, and is used where `last` is missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from alexnet.data.dataset import Dataset
from alexnet.errors import DataError, RunError, error_reason
from alexnet.files import rename, write_text
from alexnet.files import write as write_file
from alexnet.recipe import MACHINE_KEYS, Recipe, flat
from alexnet.run import RunFolder
from alexnet.training.parallel import ParallelModel

Tensors = dict[str, Tensor]
VERSION = 2
KINDS = ("network", "momentum", "best")
FREE = (*MACHINE_KEYS, "data.dataset")  # they may change between sessions; the dataset is compared by what is in it


@dataclass
class TrainingState:
    """Where a training stands, beside its tensors."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: int = 1  # the current one
    batch: int = 0  # batches of it that are done
    images_seen: int = 0  # in this epoch
    loss_sum: float = 0.0
    correct: int = 0
    accumulation_steps: int = 1  # micro-batches of a batch that is too large for the device's memory
    elapsed_before: float = 0.0  # seconds of earlier sessions
    setup_seconds: float | None = None  # of the first session before its first step: decoding and the like
    best_epoch: int = 0
    best: tuple[float, float] = (-1.0, 0.0)  # top-1 of the best epoch, minus its loss
    plateau: dict[str, Any] = field(default_factory=dict)  # of `Plateau` and `EarlyStop`
    early_stop: dict[str, Any] = field(default_factory=dict)
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)  # a row of metrics an epoch

    def add_batch(self, images: int, loss: float, correct: float) -> None:
        """Count a step on so many images, with their mean loss."""
        self.batch += 1
        self.images_seen += images
        self.loss_sum += loss * images
        self.correct += round(correct)

    def start_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.batch, self.images_seen, self.loss_sum, self.correct = self.epoch + 1, 0, 0, 0.0, 0


def save(
    folder: RunFolder,
    recipe: Recipe,
    dataset: Dataset,
    state: TrainingState,
    network: nn.Module,
    momentum: Tensors,
    best: Tensors,
) -> None:
    """Write a checkpoint; `best` are the weights of the best epoch. Raises as `write`."""
    named = zip(KINDS, (network.state_dict(), momentum, best), strict=True)
    tensors = {f"{kind}/{name}": t.detach().cpu().contiguous() for kind, those in named for name, t in those.items()}
    content = {"recipe": recipe.to_toml(), "dataset": dataset.fingerprint(), "state": asdict(state)}
    write(folder.path, tensors, content)


def write(run: Path, tensors: Tensors, content: dict[str, Any]) -> None:
    """Write tensors and JSON as the newest checkpoint of the run in folder `run`.

    Raises:
        RunError: the disk is full, or the folder is gone or cannot be written; the checkpoints before are intact.
    """
    content = {"version": VERSION, **content}
    path = run / "checkpoint"
    following, last, before = path / "next", path / "last", path / "before"
    try:
        shutil.rmtree(following, ignore_errors=True)
        path.mkdir(exist_ok=True)
        following.mkdir()
        write_file(following / "state.safetensors", lambda part: safetensors.torch.save_file(tensors, part))
        write_text(following / "state.json", json.dumps({"sha256": _digest(following, content), "content": content}, indent=2))
        if last.exists():
            shutil.rmtree(before, ignore_errors=True)
            rename(last, before)
        rename(following, last)
    except RunError:
        shutil.rmtree(following, ignore_errors=True)
        raise
    except OSError as error:
        raise RunError(f"cannot write {path}: {error_reason(error)}") from error


def exists(run: Path) -> bool:
    """Tell whether the run in folder `run` has a checkpoint, good or damaged."""
    return any((run / "checkpoint" / name).exists() for name in ("last", "before"))


def remove(run: Path) -> None:
    """Remove the checkpoints of a finished run."""
    shutil.rmtree(run / "checkpoint", ignore_errors=True)


def load(folder: RunFolder, recipe: Recipe, dataset: Dataset) -> tuple[TrainingState, dict[str, Tensors]] | None:
    """Return the state in the newest undamaged checkpoint, and its tensors by kind; None if there is no checkpoint.

    Raises:
        RunError: all checkpoints are damaged, or another version or another recipe wrote them.
        DataError: the dataset is not the one they were written under.
    """
    result = read(folder.path)
    if result is None:
        return None
    flat_tensors, content = result
    tensors: dict[str, Tensors] = {kind: {} for kind in KINDS}
    try:
        state = TypeAdapter(TrainingState).validate_python(content["state"])
        _compare_recipes(folder, tomllib.loads(content["recipe"]), tomllib.loads(recipe.to_toml()))
        _compare_datasets(folder, dataset, content["dataset"], dataset.fingerprint())
        for name, tensor in flat_tensors.items():
            kind, _, rest = name.partition("/")
            tensors[kind][rest] = tensor
    except (ValidationError, LookupError, TypeError, ValueError) as error:
        raise _unusable(folder.path) from error
    return state, tensors


def momentum_of(model: ParallelModel, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the optimizer's momentum by the parameters' names, whole: with other processes, all of them call it."""
    parameters = model.network.named_parameters()
    kept = {name: optimizer.state[p]["momentum_buffer"] for name, p in parameters if p in optimizer.state}
    return {name: model.gather_full(name, tensor) for name, tensor in kept.items()}


def restore(network: Tensors, momentum: Tensors, model: ParallelModel, optimizer: torch.optim.Optimizer, run: Path) -> None:
    """Load weights and momentum of a checkpoint; a process takes its shards.

    Raises:
        RunError: they are another network's; `run` names where they lie.
    """
    try:
        model.full_model.load_state_dict(network)
        model.load_shards()
        for name, parameter in model.network.named_parameters():
            if name in momentum:
                kept = torch.empty_like(parameter).copy_(model.shard(name, momentum[name]))
                optimizer.state[parameter]["momentum_buffer"] = kept
    except RuntimeError as error:
        raise _unusable(run) from error


def read(run: Path) -> tuple[Tensors, dict[str, Any]] | None:
    """Return tensors and JSON of the newest checkpoint that is not damaged; None if there is no checkpoint.

    Raises:
        RunError: all checkpoints are damaged, or another version wrote them.
    """
    damaged = []
    for folder in (run / "checkpoint" / "last", run / "checkpoint" / "before"):
        if not folder.exists():
            continue
        # Whatever a damaged file makes of JSON: other types, too deep, no text at all. MemoryError: a length that lies.
        with suppress(OSError, ValueError, TypeError, LookupError, RecursionError, MemoryError, safetensors.SafetensorError):
            whole = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            content: dict[str, Any] = whole["content" if "content" in whole else "state"]
            if whole["sha256"] == _digest(folder, content):
                if content.pop("version") != VERSION:
                    raise RunError(f"{folder} was written by another version of alexnet: go on with that one")
                # Copied: Windows renames no folder in which a file is mapped, and this one is to become `before`.
                mapped = safetensors.torch.load_file(folder / "state.safetensors")
                return {name: tensor.clone() for name, tensor in mapped.items()}, content
        damaged.append(folder)
    if damaged:
        raise RunError(f"{damaged[0]} is damaged, and there is no good one before it: train again into another --out")
    return None


def _digest(folder: Path, content: dict[str, Any]) -> str:
    """Return the SHA-256 of the tensors' file and the JSON together."""
    with (folder / "state.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


def _unusable(run: Path) -> RunError:
    return RunError(f"{run / 'checkpoint'} is not what this version of alexnet writes: train again into another --out")


def _compare_recipes(folder: RunFolder, then: dict[str, Any], now: dict[str, Any]) -> None:
    was, has = flat(then), flat(now)
    for key in sorted(was.keys() | has.keys()):
        if was.get(key) != has.get(key) and key not in FREE:
            raise RunError(
                f"{folder.recipe} was changed since the checkpoint was written: {key} was {was.get(key)!r} and is "
                f"{has.get(key)!r}; put it back, or train anew (--recipe {folder.recipe} --out …)"
            )


def _compare_datasets(folder: RunFolder, dataset: Dataset, then: dict[str, Any], now: dict[str, Any]) -> None:
    if then == now:
        return
    if then["images"] != now["images"]:
        change = f"it had {then['images']:,} readable images and has {now['images']:,}"
    else:
        listing = then["listing"] != now["listing"]
        change = "names, labels or splits are not what they were" if listing else "images have other pixels than they had"
    raise DataError(
        f"{dataset.table.name} has changed since the checkpoint of {folder.path} was written: {change}; put it back, "
        "or train anew into another --out"
    )
