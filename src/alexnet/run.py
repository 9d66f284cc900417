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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from alexnet.data.images import Preprocessing
from alexnet.errors import RunError, VariantError, printable, quoted, reason_of, shortened
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import place
from alexnet.outputs import fill, unwritable
from alexnet.recipe import Recipe, parse


class Sealed(BaseModel):
    """A JSON file that shows whether it was changed: `checksum` is the SHA-256 of all else in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    checksum: str = ""

    def digest(self) -> str:
        """Return the SHA-256 of all but `checksum`, in hexadecimal."""
        return hashlib.sha256(self.model_dump_json(exclude={"checksum"}).encode("utf-8", "surrogatepass")).hexdigest()

    def sealed(self) -> Self:
        """Return a copy with its checksum."""
        return self.model_copy(update={"checksum": self.digest()})

    @classmethod
    def read(cls, place: Path) -> Self:
        """Return what a file holds; whether its checksum is right is for the caller to ask.

        Raises:
            RunError: it is missing, something else, or from a newer version.
        """
        try:
            return cls.model_validate_json(place.read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            newer = "; it was written by a newer version of alexnet" if first["loc"] == ("version",) else ""
            where = ".".join(map(str, first["loc"])) or "the file"
            raise RunError(f"{place} cannot be used: {where}: {first['msg']}{newer}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{place} cannot be read: {reason_of(error)}") from error


class Card(Sealed):
    """`model.json`: all that is needed beside the weights to predict.

    `overrides` are the variant's fields that the recipe changed, `precision` is the recipe's, that to compute in; `sha256` is
    that of `model.safetensors`.
    """

    @field_validator("labels")
    @classmethod
    def _plain(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if odd := [label for label in labels if printable(label) != label]:
            raise ValueError(f"{shortened(odd[0])!r} holds control characters")
        return labels

    variant: str
    width: float = 1.0
    overrides: dict[str, Any] = {}
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    preprocessing: Preprocessing
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    sha256: str = ""

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
    def card(self) -> Path:
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
            way_on = "" if finished else f"go on with it (alexnet train --resume {quoted(path)}) or "
            raise RunError(f"{path} holds a {'finished ' if finished else ''}run already: {way_on}name another --out")
        leftover = {"recipe.toml.part"}  # of a process that was killed before it wrote anything
        if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - leftover):
            raise RunError(f"{path} exists and is not empty: name another --out")
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise RunError(f"cannot write the run folder {path}: {reason_of(error)}; name another --out") from error
    return RunFolder(path)


def find(path: Path) -> RunFolder:
    """Return an existing run folder, finished or not.

    Raises:
        RunError: it is none.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise RunError(f"no run {path}: no such folder")
    if not folder.recipe.exists() and not folder.card.exists():
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
        raise RunError(f"{folder.recipe} cannot be read: {reason_of(error)}") from error
    return parse(tree, str(folder.recipe))


def save_model(folder: RunFolder, network: AlexNet, card: Card) -> Card:
    """Write the weights and `card` with their checksum; return that card.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    mean_image = card.preprocessing.mean_image
    save_weights(folder.weights, network, {} if mean_image is None else {"mean_image": torch.from_numpy(mean_image)})
    card = card.model_copy(update={"sha256": sha256(folder.weights)}).sealed()
    write_text(folder.card, card.model_dump_json(indent=2) + "\n")
    return card


def save_weights(place: Path, network: AlexNet, more: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a network's weights and statistics, and `more` tensors, as safetensors, whole or not at all.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in {**network.state_dict(), **(more or {})}.items()}
    try:
        place.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {place.parent}: {reason_of(error)}") from error
    write(place, lambda part: safetensors.torch.save_file(tensors, part))


def read_card(folder: RunFolder) -> Card:
    """Return what belongs to the weights of a run, but for a mean image, which lies with them.

    Raises:
        RunError: it is missing, damaged, or from a newer version.
    """
    if not folder.card.exists():
        raise RunError(
            f"{folder.path} has no trained network yet: alexnet train --resume {quoted(folder.path)} goes on with it"
        )
    card = Card.read(folder.card)
    if card.checksum and card.checksum != card.digest():
        raise RunError(f'{folder.card} was changed since it was written; if you did that, remove "checksum" from it too')
    return card


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
            return [{name: float(row[name]) for name in columns} for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder.metrics} cannot be read: {reason_of(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a run holds.

    Raises:
        RunError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {reason_of(error)}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} is not what training writes")
    return found


def load_model(folder: RunFolder, device: torch.device) -> tuple[AlexNet, Card]:
    """Return the network of a run on `device`, ready to predict, and its card.

    Raises:
        RunError: a file is missing, damaged, or from a newer version.
    """
    card = read_card(folder)
    try:
        if sha256(folder.weights) != card.sha256:
            raise RunError(f"{folder.weights} is damaged: its SHA-256 is not the one in model.json")
        network, tensors = card.network(), safetensors.torch.load_file(folder.weights, device=str(device))
        if isinstance(card.preprocessing.mean, str) and "mean_image" in tensors:
            how = card.preprocessing.model_copy(update={"mean_image": tensors.pop("mean_image").cpu().numpy()})
            card = card.model_copy(update={"preprocessing": how})
        network.load_state_dict(tensors, assign=True)
    except OSError as error:
        raise RunError(f"{folder.weights} cannot be read: {reason_of(error)}") from error
    except (safetensors.SafetensorError, RuntimeError, TypeError, VariantError) as error:
        raise RunError(f"{folder.weights} does not fit model.json: {str(error).splitlines()[0]}") from error
    return place(network, device).eval(), card


def write(place: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` write a file of a run beside `place`, flush it to disk, and rename it to `place`: whatever was there goes.

    `outputs.write` is for places where a user's own files may be.

    Raises:
        RunError: the disk is full or the folder cannot be written; what was at `place` is unchanged.
    """
    part = place.with_name(f"{place.name}.part")
    try:
        part.touch()
        fill(part, writer)
        part.replace(place)
        sync_folder(place.parent)
    except (OSError, safetensors.SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise unwritable(place, error) from error


def write_text(place: Path, text: str) -> None:
    r"""Write `text` as UTF-8, whole or not at all; bytes of a file's name that are no UTF-8 become \udc80 to \udcff."""
    write(place, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n"))


def write_json(place: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    write_text(place, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush renames in a folder to disk, where the system lets folders be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
