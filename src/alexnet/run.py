"""The run folder: writing it, opening it, refusing a damaged one.

Nothing in it is a pickle. Every file is written beside its place, flushed to disk, then renamed, so it is whole or absent.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from alexnet.errors import RunError, VariantError, error_reason, printable, shell_quote, truncate
from alexnet.files import sha256, write, write_text
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import to_device
from alexnet.recipe import Preprocessing, Recipe, parse, renamed

OLD_COLUMNS = {"rate": "lr"}  # of `metrics.csv`, in earlier versions
Model = TypeVar("Model", bound=BaseModel)


class ModelConfig(BaseModel):
    """`model.json`: all that is needed beside the weights to predict.

    `overrides` are the variant's fields that the recipe changed, `precision` is the recipe's, that to compute in; `sha256` is
    that of `model.safetensors`, `checksum` that of all else in the file: a damaged mean would make wrong answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _of_today(cls, content: Any) -> Any:
        """Take a file of an earlier version, whose keys had other names."""
        if isinstance(content, dict) and isinstance(images := content.get("preprocessing"), dict) and "stored" in images:
            return {**content, "preprocessing": renamed({"images": images})["images"], "checksum": ""}
        return content

    @field_validator("preprocessing")
    @classmethod
    def _resolved(cls, preprocessing: Preprocessing) -> Preprocessing:
        figures = (preprocessing.cache_size, preprocessing.upscale, preprocessing.mean, preprocessing.std)
        if words := [word for word in figures if word in ("auto", "channels", "one")]:
            raise ValueError(f"{words[0]!r} is no figure")
        return preprocessing

    @field_validator("labels")
    @classmethod
    def _plain(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if odd := [label for label in labels if printable(label) != label]:
            raise ValueError(f"{truncate(odd[0])!r} holds control characters")
        return labels

    version: Literal[1] = 1
    variant: str
    width: float = 1.0
    overrides: dict[str, Any] = {}
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    preprocessing: Preprocessing
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    sha256: str = ""
    checksum: str = ""

    def digest(self) -> str:
        """Return the SHA-256 of all but `checksum`, in hexadecimal."""
        return hashlib.sha256(
            json.dumps(self.model_dump(mode="json", exclude={"checksum"}), sort_keys=True).encode()
        ).hexdigest()

    def network(self) -> AlexNet:
        """Return the network with its weights on no device yet (`meta`)."""
        with torch.device("meta"):
            return AlexNet(self.variant, len(self.labels), width=self.width, **self.overrides)


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def weights(self) -> Path:
        """The weights that predict."""
        return self.path / "model.safetensors"

    @property
    def config(self) -> Path:
        """What belongs to the weights."""
        return self.path / "model.json"

    @property
    def summary(self) -> Path:
        """What `train --json` prints; there once the run is done."""
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        """A row an epoch."""
        return self.path / "metrics.csv"

    @property
    def journal(self) -> Path:
        """What a training by minutes decided by the clock: the share that was done before each step, a line each."""
        return self.path / "journal.txt"

    @property
    def lock(self) -> Path:
        """Held while a process trains here."""
        return self.path / "train.lock"

    @property
    def environment(self) -> Path:
        """Versions, processor, threads."""
        return self.path / "environment.json"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"


def create(path: Path) -> RunFolder:
    """Make the folder of a new run.

    Raises:
        RunError: it holds a run or anything else, or cannot be written.
    """
    try:
        if path.is_dir() and (path / "recipe.toml").exists():
            finished = (path / "summary.json").exists()
            way_on = "" if finished else f"go on with it (alexnet train --resume {shell_quote(path)}) or "
            raise RunError(f"{path} holds a {'finished ' if finished else ''}run already: {way_on}name another --out")
        # A process that was killed before it wrote anything may have left a temporary file.
        if path.exists() and (not path.is_dir() or any(not entry.match("recipe.toml.*.part") for entry in path.iterdir())):
            raise RunError(f"{path} exists and is not empty: name another --out")
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise RunError(f"cannot write the run folder {path}: {error_reason(error)}; name another --out") from error
    return RunFolder(path)


def find(path: Path) -> RunFolder:
    """Return an existing run folder, finished or not.

    Raises:
        RunError: it is none.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise RunError(f"no run {path}: no such folder")
    if not folder.recipe.exists() and not folder.config.exists():
        raise RunError(f"{path} is not a run folder: it has no model.json (alexnet train makes one)")
    return folder


def read_recipe(folder: RunFolder) -> Recipe:
    """Return the resolved recipe of a run.

    Raises:
        RunError: it cannot be read.
        RecipeError: a key or a value in it is wrong.
    """
    try:
        tree = tomllib.loads(folder.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder.recipe} cannot be read: {error_reason(error)}") from error
    return parse(renamed(tree), str(folder.recipe))


def save_model(folder: RunFolder, network: AlexNet, config: ModelConfig) -> ModelConfig:
    """Write the weights, and `config` with their SHA-256; return that config.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    mean_image = config.preprocessing.mean_image
    save_weights(folder.weights, network, {} if mean_image is None else {"mean_image": torch.from_numpy(mean_image)})
    config = config.model_copy(update={"sha256": sha256(folder.weights)})
    config = config.model_copy(update={"checksum": config.digest()})
    write_text(folder.config, config.model_dump_json(indent=2) + "\n")
    return config


def save_weights(path: Path, network: AlexNet, more: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a network's weights and statistics, and `more` tensors, as safetensors, whole or not at all.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in {**network.state_dict(), **(more or {})}.items()}
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path.parent}: {error_reason(error)}") from error
    write(path, lambda part: safetensors.torch.save_file(tensors, part))


def read_config(folder: RunFolder) -> ModelConfig:
    """Return what belongs to the weights of a run, but for a mean image, which lies with them.

    Raises:
        RunError: it is missing, damaged, or from a newer version.
    """
    if not folder.config.exists():
        raise RunError(
            f"{folder.path} has no trained network yet: alexnet train --resume {shell_quote(folder.path)} goes on with it"
        )
    config = read_model(ModelConfig, folder.config)
    if config.checksum and config.checksum != config.digest():
        raise RunError(f'{folder.config} was changed since it was written; if you did that, remove "checksum" from it too')
    return config


def read_model(kind: type[Model], path: Path) -> Model:
    """Return what a JSON file holds, as a pydantic model.

    Raises:
        RunError: it is missing, something else, or from a newer version.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        newer = "; it was written by a newer version of alexnet" if first["loc"] == ("version",) else ""
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RunError(f"{path} cannot be used: {where}: {first['msg']}{newer}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error_reason(error)}") from error


def write_metrics(folder: RunFolder, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `metrics.csv`, a row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder.metrics, text.getvalue())


def read_metrics(folder: RunFolder, columns: Sequence[str]) -> list[dict[str, float]]:
    """Return some columns of `metrics.csv`, a row an epoch.

    Raises:
        RunError: it cannot be read.
    """
    try:
        with folder.metrics.open(encoding="utf-8", newline="") as file:
            rows = [{OLD_COLUMNS.get(name, name): value for name, value in row.items()} for row in csv.DictReader(file)]
        return [{name: float(row[name]) for name in columns} for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder.metrics} cannot be read: {error_reason(error)}") from error


def load_model(folder: RunFolder, device: torch.device) -> tuple[AlexNet, ModelConfig]:
    """Return the network of a run on `device`, ready to predict, and its config.

    Raises:
        RunError: a file is missing, damaged, or from a newer version.
    """
    config = read_config(folder)
    try:
        if sha256(folder.weights) != config.sha256:
            raise RunError(f"{folder.weights} is damaged: its SHA-256 is not the one in model.json")
        network, tensors = config.network(), safetensors.torch.load_file(folder.weights, device=str(device))
        if isinstance(config.preprocessing.mean, str) and "mean_image" in tensors:
            preprocessing = config.preprocessing.model_copy(update={"mean_image": tensors.pop("mean_image").cpu().numpy()})
            config = config.model_copy(update={"preprocessing": preprocessing})
        network.load_state_dict(tensors, assign=True)
    except OSError as error:
        raise RunError(f"{folder.weights} cannot be read: {error_reason(error)}") from error
    except (safetensors.SafetensorError, RuntimeError, TypeError, VariantError) as error:
        raise RunError(f"{folder.weights} does not fit model.json: {str(error).splitlines()[0]}") from error
    return to_device(network, device).eval(), config
