"""What a checkpoint of ours holds: where a training stands, its tensors, and the recipe and the dataset it belongs to."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from alexnet.data.dataset import Dataset
from alexnet.errors import DataError, RunError
from alexnet.recipe import MACHINE_KEYS, Recipe, flat
from alexnet.run import RunFolder
from alexnet.training import checkpoint
from alexnet.training.checkpoint import Tensors
from alexnet.training.parallel import Share

KINDS = ("network", "momentum", "best")
FREE = (*MACHINE_KEYS, "data.dataset")  # they may change between sessions; the dataset is compared by what is in it


@dataclass
class Progress:
    """Where a training stands, beside its tensors."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: int = 1  # the one at work
    batch: int = 0  # of it, done
    seen: int = 0  # images of it
    loss_sum: float = 0.0
    right: int = 0
    pieces: int = 1  # that a batch is cut into, as the device's memory is too small for it
    seconds_before: float = 0.0  # in earlier sessions
    prelude: float | None = None  # seconds of the first session before its first step: decoding and the like
    best_epoch: int = 0
    best: tuple[float, float] = (-1.0, 0.0)  # top-1 of the best epoch, minus its loss
    plateau: dict[str, Any] = field(default_factory=dict)  # where `Plateau` and `EarlyStop` stand
    early_stop: dict[str, Any] = field(default_factory=dict)
    ended: bool = False  # early
    history: list[dict[str, Any]] = field(default_factory=list)


def save(
    folder: RunFolder,
    recipe: Recipe,
    dataset: Dataset,
    at: Progress,
    network: nn.Module,
    momentum: Tensors,
    best: Tensors,
) -> None:
    """Write a checkpoint; `best` are the weights of the best epoch.

    Raises:
        RunError: it cannot be written; the one before is intact.
    """
    named = zip(KINDS, (network.state_dict(), momentum, best), strict=True)
    tensors = {f"{kind}/{name}": t.detach().cpu().contiguous() for kind, those in named for name, t in those.items()}
    belongs = {"recipe": recipe.to_toml(), "dataset": dataset.fingerprint()}
    checkpoint.save(folder.path, tensors, {**belongs, "at": asdict(at)})


def load(folder: RunFolder, recipe: Recipe, dataset: Dataset) -> tuple[Progress, dict[str, Tensors]] | None:
    """Return where the last checkpoint stands, and its tensors by kind; None where there is none.

    Raises:
        RunError: all checkpoints are damaged, or the recipe is not the one they were written under.
        DataError: the dataset is not the one they were written under.
    """
    found = checkpoint.load(folder.path)
    if found is None:
        return None
    flat, content = found
    tensors: dict[str, Tensors] = {kind: {} for kind in KINDS}
    try:
        at = TypeAdapter(Progress).validate_python(content["at"])
        _compare_recipes(folder, tomllib.loads(content["recipe"]), tomllib.loads(recipe.to_toml()))
        _compare_datasets(folder, dataset, content["dataset"], dataset.fingerprint())
        for name, tensor in flat.items():
            kind, _, rest = name.partition("/")
            tensors[kind][rest] = tensor
    except (ValidationError, LookupError, TypeError, ValueError) as error:
        raise _foreign(folder.path) from error
    return at, tensors


def momentum(share: Share, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the optimizer's momentum by the parameters' names, whole: with other processes, all of them call it."""
    parameters = share.network.named_parameters()
    kept = {name: optimizer.state[p]["momentum_buffer"] for name, p in parameters if p in optimizer.state}
    return {name: share.gathered(name, tensor) for name, tensor in kept.items()}


def put_back(network: Tensors, momentum: Tensors, share: Share, optimizer: torch.optim.Optimizer, run: Path) -> None:
    """Give the network its weights back, and the optimizer its momentum; of both, a process takes its part.

    Raises:
        RunError: they are another network's; `run` names where they lie.
    """
    try:
        share.whole.load_state_dict(network)
        share.take()
        for name, parameter in share.network.named_parameters():
            if name in momentum:
                kept = torch.empty_like(parameter).copy_(share.part(name, momentum[name]))
                optimizer.state[parameter]["momentum_buffer"] = kept
    except RuntimeError as error:
        raise _foreign(run) from error


def _foreign(run: Path) -> RunError:
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
