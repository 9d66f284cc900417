"""Checkpoints: the state of a training on disk, as safetensors and JSON.

A checkpoint is written to `checkpoint/next`, flushed to disk, and renamed to `checkpoint/last`. The previous one is kept as
`checkpoint/before`, and used if `last` is missing or damaged.
"""

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
from torch import Tensor

from alexnet.data.dataset import Dataset
from alexnet.errors import DataError, RunError, counted
from alexnet.files import rename, write_text, writing
from alexnet.files import write as write_file
from alexnet.recipe import MACHINE_KEYS, Recipe, flatten_keys
from alexnet.run import RunFolder, parse_saved
from alexnet.training.average import WeightAverage
from alexnet.training.loss_scale import LossScale
from alexnet.training.parallel import ParallelModel
from alexnet.training.readings import Reading

Tensors = dict[str, Tensor]
VERSION = 3
KINDS = ("network", "momentum", "average", "loss_scale", "best")
CHANGEABLE = (*MACHINE_KEYS, "data.dataset")  # recipe keys that may change; the dataset is compared by its contents


@dataclass
class TrainingState:
    """The state of a training, apart from its tensors."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: int = 1  # the current one
    batch: int = 0  # the next one, which is the number of those done in this epoch
    images_seen: int = 0  # in this epoch, as are the next two
    loss_sum: float = 0.0
    correct: int = 0
    accumulation_steps: int = 1  # micro-batches per batch; more than 1 once the device ran out of memory
    elapsed_before: float = 0.0  # seconds of earlier sessions
    setup_seconds: float | None = None  # of the first session, until its first step
    best_epoch: int = 0
    best: tuple[float, float] = (-1.0, 0.0)  # top-1 and negative loss of the best epoch
    plateau: dict[str, Any] = field(default_factory=dict)  # fields of `Plateau`
    early_stop: dict[str, Any] = field(default_factory=dict)  # fields of `EarlyStop`
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)  # a row of metrics per epoch

    def add(self, reading: Reading) -> None:
        """Add the numbers of a step to those of the epoch."""
        self.images_seen += reading.images
        self.loss_sum += reading.loss * reading.images
        self.correct += round(reading.correct)

    def start_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.batch, self.images_seen, self.loss_sum, self.correct = self.epoch + 1, 0, 0, 0.0, 0


def save(folder: RunFolder, recipe: Recipe, dataset: Dataset, state: TrainingState, by_kind: dict[str, Tensors]) -> None:
    """Write a checkpoint with the tensors of each of `KINDS`; `best` are the weights of the best epoch."""
    tensors = {f"{kind}/{name}": t.detach().cpu().contiguous() for kind in KINDS for name, t in by_kind[kind].items()}
    content = {"recipe": recipe.to_toml(), "dataset": dataset.fingerprint(), "state": asdict(state)}
    write(folder.path, tensors, content)


def write(run: Path, tensors: Tensors, content: dict[str, Any]) -> None:
    """Write tensors and JSON as the newest checkpoint of the run in folder `run`."""
    content = {"version": VERSION, **content}
    path = run / "checkpoint"
    new, last, before = path / "next", path / "last", path / "before"
    shutil.rmtree(new, ignore_errors=True)
    with writing(path):
        try:
            path.mkdir(exist_ok=True)
            new.mkdir()
            write_file(new / "state.safetensors", lambda part: safetensors.torch.save_file(tensors, part))
            write_text(new / "state.json", json.dumps({"sha256": _digest(new, content), "content": content}, indent=2))
            if last.exists():
                shutil.rmtree(before, ignore_errors=True)
                rename(last, before)
            rename(new, last)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def exists(run: Path) -> bool:
    """Return whether the run in folder `run` has a checkpoint, even a damaged one."""
    return any((run / "checkpoint" / name).exists() for name in ("last", "before"))


def remove(run: Path) -> None:
    """Remove the checkpoints of a finished run."""
    shutil.rmtree(run / "checkpoint", ignore_errors=True)


def load(folder: RunFolder, recipe: Recipe, dataset: Dataset) -> tuple[TrainingState, dict[str, Tensors]] | None:
    """Return the state in the newest intact checkpoint, and its tensors by kind; None if there is no checkpoint."""
    checkpoint = read(folder.path)
    if checkpoint is None:
        return None
    flat_tensors, content = checkpoint
    tensors: dict[str, Tensors] = {kind: {} for kind in KINDS}
    try:
        state = TypeAdapter(TrainingState).validate_python(content["state"])
        saved_recipe = parse_saved(tomllib.loads(content["recipe"]), f"{folder.path / 'checkpoint'}")
        _compare_recipes(folder, saved_recipe, recipe)
        _compare_datasets(folder, dataset, content["dataset"], dataset.fingerprint())
        for name, tensor in flat_tensors.items():
            kind, _, rest = name.partition("/")
            tensors[kind][rest] = tensor
    except (ValidationError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _unusable(folder.path) from error
    return state, tensors


def momentum_of(model: ParallelModel, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the optimizer's momentum by parameter name, gathered from all processes; every process calls it."""
    parameters = model.network.named_parameters()
    buffers = {name: optimizer.state[p]["momentum_buffer"] for name, p in parameters if p in optimizer.state}
    return {name: model.gather_full(name, tensor) for name, tensor in buffers.items()}


def restore(
    run: Path,
    tensors: dict[str, Tensors],
    model: ParallelModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    loss_scale: LossScale | None,
) -> None:
    """Load the weights and the rest of a training's tensors, by kind; each process keeps its own shards."""
    momentum = tensors["momentum"]
    try:
        model.full_model.load_state_dict(tensors["network"])
        model.load_shards()
        for name, parameter in model.network.named_parameters():
            if name in momentum:
                buffer = torch.empty_like(parameter).copy_(model.shard(name, momentum[name]))
                optimizer.state[parameter]["momentum_buffer"] = buffer
        if average is not None:
            average.restore(tensors["average"])
        if loss_scale is not None:
            loss_scale.restore(tensors["loss_scale"])
    except (RuntimeError, KeyError) as error:
        raise _unusable(run) from error


def read(run: Path) -> tuple[Tensors, dict[str, Any]] | None:
    """Return the tensors and JSON of the newest intact checkpoint; None if there is no checkpoint."""
    damaged = []
    for folder in (run / "checkpoint" / "last", run / "checkpoint" / "before"):
        if not folder.exists():
            continue
        # A damaged file may hold other types, deep nesting or no text; a wrong length raises MemoryError.
        with suppress(OSError, ValueError, TypeError, LookupError, RecursionError, MemoryError, safetensors.SafetensorError):
            document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            content: dict[str, Any] = document["content" if "content" in document else "state"]
            if document["sha256"] == _digest(folder, content):
                version = content.pop("version")
                # In version 2, the norm `local` was another network (`local-each`).
                if version != VERSION and (version != 2 or 'norm = "local"' in content["recipe"]):
                    raise RunError(f"{folder} was written by another version of alexnet: resume with that version")
                # Copied, as Windows cannot rename a folder with a mapped file, and this one will become `before`.
                mapped = safetensors.torch.load_file(folder / "state.safetensors")
                return {name: tensor.clone() for name, tensor in mapped.items()}, content
        damaged.append(folder)
    if damaged:
        problem = f"{damaged[0]} is damaged, and the one before it is not intact either"
        raise RunError(f"{problem}: start a new run with another --out")
    return None


def _digest(folder: Path, content: dict[str, Any]) -> str:
    """Return the SHA-256 of the tensors' file and the JSON."""
    with (folder / "state.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


def _unusable(run: Path) -> RunError:
    return RunError(f"{run / 'checkpoint'} was not written by this version of alexnet: start a new run with another --out")


def _compare_recipes(folder: RunFolder, saved: Recipe, current: Recipe) -> None:
    then, now = (flatten_keys(tomllib.loads(recipe.to_toml())) for recipe in (saved, current))
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key) and key not in CHANGEABLE:
            change = f"{key} was {then.get(key)!r} and is {now.get(key)!r}"
            advice = f"restore it, or start a new run (--recipe {folder.recipe} --out …)"
            raise RunError(f"{folder.recipe} was changed since the checkpoint was written: {change}; {advice}")


def _compare_datasets(folder: RunFolder, dataset: Dataset, saved: dict[str, Any], current: dict[str, Any]) -> None:
    if saved["images"] != current["images"]:
        change = f"it had {counted(saved['images'], 'readable image')} and has {current['images']:,}"
    elif saved["listing"] != current["listing"]:
        change = "names, labels or splits differ"
    elif saved.get("digests", current["digests"]) != current["digests"]:  # checkpoints before this key hashed pixels otherwise
        change = "the pixels of images differ"
    else:
        return
    problem = f"{dataset.table.name} has changed since the checkpoint of {folder.path} was written: {change}"
    raise DataError(f"{problem}; restore it, or start a new run with another --out")
