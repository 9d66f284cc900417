"""Run folders: create, write, open and check them.

They contain no pickles. Every file is written atomically, so it is complete or absent.
"""

import csv
import hashlib
import io
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from alexnet.errors import RunError, VariantError, error_reason, format_names, printable, shell_quote, truncate
from alexnet.files import read_json, sha256, write, write_text, writing
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import to_device
from alexnet.network.known import Known
from alexnet.network.variants import VARIANTS
from alexnet.recipe import Preprocessing, Recipe, parse, rename_keys

Model = TypeVar("Model", bound=BaseModel)
KNOWN = "known."  # before the names of the tensors of `Known`
AS_BEFORE = {"near_duplicates": "ignored", "none_label": ""}  # keys of `[data]` that recipes of earlier versions lack
OLD_COLUMNS = {"rate": "lr"}  # renamed columns of `metrics.csv` from earlier versions


class ModelConfig(BaseModel):
    """`model.json`: everything that prediction needs except the weights.

    `overrides` are the variant's fields that the recipe changed; `precision` is the recipe's. `sha256` is the hash of
    `model.safetensors`. `checksum` is the hash of the other fields, as a damaged mean would silently give wrong predictions.
    `known`, a `Known` or None, is saved with the weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, content: Any) -> Any:
        """Rename the keys of a file from an earlier version; in version 1, the norm `local` was today's `local-each`."""
        if not isinstance(content, dict):
            return content
        images, overrides = content.get("preprocessing"), content.get("overrides")
        if isinstance(images, dict) and "stored" in images:
            content = {**content, "preprocessing": rename_keys({"images": images})["images"], "checksum": ""}
        if content.get("version") == 1 and isinstance(overrides, dict) and overrides.get("norm") == "local":
            content = {**content, "overrides": {**overrides, "norm": "local-each"}, "checksum": ""}
        return content

    @field_validator("preprocessing")
    @classmethod
    def _resolved(cls, preprocessing: Preprocessing) -> Preprocessing:
        sizes = preprocessing.cache_size, preprocessing.input, preprocessing.upscale, preprocessing.views
        figures = (*sizes, preprocessing.mean, preprocessing.std)
        if words := [word for word in figures if word in ("auto", "channels", "one")]:
            raise ValueError(f"{words[0]!r} is not a number")
        return preprocessing

    @field_validator("labels")
    @classmethod
    def _plain(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if odd := [label for label in labels if printable(label) != label]:
            raise ValueError(f"{truncate(odd[0])!r} holds control characters")
        return labels

    version: Literal[1, 2, 3] = 3
    variant: str
    width: float = 1.0
    overrides: dict[str, Any] = {}
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    preprocessing: Preprocessing
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    sha256: str = ""
    checksum: str = ""
    known: Any = Field(default=None, exclude=True, repr=False)

    @classmethod
    def of(cls, recipe: Recipe, labels: tuple[str, ...], preprocessing: Preprocessing) -> Self:
        """Return the config of a network as a resolved recipe describes it."""
        network = recipe.model.model_dump(include={"variant", "width"}) | {"overrides": recipe.model.overrides}
        return cls(**network, labels=labels, preprocessing=preprocessing, precision=recipe.train.precision)

    def digest(self) -> str:
        """Return the SHA-256 of all fields except `checksum`, in hexadecimal."""
        content = self.model_dump(mode="json", exclude={"checksum"})
        if content["preprocessing"]["views"] == 1:
            del content["preprocessing"]["views"]  # earlier versions had no such key
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def network(self) -> AlexNet:
        """Build the network on the meta device, without memory for its weights."""
        with torch.device("meta"):
            return AlexNet(self.variant, len(self.labels), width=self.width, **self.overrides)


class RunFolder:
    """Paths of the files in a run folder, `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"  # as resolved
        self.weights = path / "model.safetensors"  # or those of an epoch (`find_weights`)
        self.config = path / "model.json"  # the `ModelConfig` of the weights
        self.summary = path / "summary.json"  # what `train --json` prints; exists once training is finished
        self.predictions = path / "predictions.csv"  # a row per validation and test image; earlier runs have none
        self.metrics = path / "metrics.csv"  # a row per epoch
        self.journal = path / "journal.txt"  # with `train.minutes`: the fraction of the time used before each step
        self.lock = path / "train.lock"  # held while a process trains in this folder
        self.environment = path / "environment.json"  # library versions, processor, threads
        self.report = path / "report.html"

    @property
    def resume_command(self) -> str:
        """The command that resumes the training."""
        return f"alexnet train --resume {shell_quote(self.path)}"

    def read_summary(self) -> dict[str, Any]:
        """Return the summary of the training, which must be finished."""
        if not self.summary.exists():
            raise RunError(f"{self.path} is not finished: resume it with {self.resume_command}")
        return read_json(self.summary)


def create(path: Path) -> RunFolder:
    """Create the folder of a new run."""
    folder = RunFolder(path)
    try:
        if path.is_dir() and folder.recipe.exists():
            finished = folder.summary.exists()
            resume = "" if finished else f"resume it ({folder.resume_command}) or "
            raise RunError(f"{path} already holds a {'finished ' if finished else ''}run: {resume}name another --out")
        # A process that was killed at the start may have left its temporary file: such a folder counts as empty.
        if path.exists() and (not path.is_dir() or any(not entry.match("recipe.toml.*.part") for entry in path.iterdir())):
            raise RunError(f"{path} exists and is not empty: name another --out")
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise RunError(f"cannot write the run folder {path}: {error_reason(error)}; name another --out") from error
    return folder


def find(path: Path) -> RunFolder:
    """Open an existing run folder, finished or not."""
    folder = RunFolder(path)
    if path.is_file():
        raise RunError(f"{path} is a file, not a run folder")
    if not path.is_dir():
        raise RunError(f"no run {path}: no such {'file' if path.suffix == '.safetensors' else 'folder'}")
    if not folder.recipe.exists() and not folder.config.exists():
        raise RunError(f"{path} is not a run folder: it has no model.json (alexnet train creates one)")
    return folder


def is_epoch(path: Path) -> bool:
    """Return whether this file is in the folder `epochs` of a run, for `train.save_epochs` or `save_steps`."""
    parent = path.absolute().parent
    return path.is_file() and parent.name == "epochs" and RunFolder(parent.parent).recipe.exists()


def saved(path: Path) -> Path:
    """Return the file that `RUN@512`, after that many steps, or `RUN@epoch3` names; any other path as it is.

    Raises:
        RunError: the run did not save these weights.
    """
    name, at, point = path.name.rpartition("@")
    folder = RunFolder(path.parent / name)
    if not at or path.exists() or not folder.recipe.exists():
        return path
    if point.isdecimal():
        names = [f"step-{int(point):08}"]
    else:
        pattern, number = read_recipe(folder).train.save_epochs, point.removeprefix("epoch")
        names = [pattern.format(epoch=int(number))] if pattern and number.isdecimal() else []
    files = {file.stem: file for file in sorted((folder.path / "epochs").glob("*.safetensors"))}
    if found := [files[stem] for stem in names if stem in files]:
        return found[0]
    raise RunError(f"{path}: no such weights in {folder.path / 'epochs'}, which has {format_names(files) or 'none'}")


def find_weights(path: Path) -> RunFolder:
    """Open a run folder, or the one whose `epochs` has the file `path`, with that file as its weights; `saved` says how."""
    path = saved(path)
    if not path.is_file():
        return find(path)
    if not is_epoch(path):
        raise RunError(f"{path} is a file: name a run folder, or a file in its epochs/ (train.save_epochs)")
    folder = find((path if len(path.parts) > 1 else path.absolute()).parent.parent)
    folder.weights = path
    return folder


def read_recipe(folder: RunFolder) -> Recipe:
    """Read the resolved recipe of a run."""
    try:
        tree = tomllib.loads(folder.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder.recipe} cannot be read: {error_reason(error)}") from error
    return parse_saved(tree, str(folder.recipe))


def parse_saved(tree: Mapping[str, Any], origin: str) -> Recipe:
    """Parse the recipe of a run, which an earlier version may have made; `origin` names the file in errors."""
    renamed = rename_keys(tree)
    if isinstance(data := renamed.get("data", {}), dict):
        renamed["data"] = {**AS_BEFORE, **data}
    return parse(renamed, origin)


def save_model(folder: RunFolder, network: AlexNet, config: ModelConfig) -> None:
    """Write the weights and `config`, adding the SHA-256 of the weights and the checksum of `config`."""
    tensors = _tensors(network, config)
    write(folder.weights, lambda part: safetensors.torch.save_file(tensors, part))
    write_text(folder.config, _with_checksum(config, sha256(folder.weights)).model_dump_json(indent=2) + "\n")


def save_epoch(path: Path, network: AlexNet, config: ModelConfig) -> None:
    """Write the weights of an epoch, with `config` and their SHA-256 in the metadata: the run may have no `model.json` yet."""
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    tensors = _tensors(network, config)
    metadata = {"config": _with_checksum(config, _sha256_of(tensors)).model_dump_json()}
    write(path, lambda part: safetensors.torch.save_file(tensors, part, metadata))


def _tensors(network: AlexNet, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Return the state of the network and of `Known`, and the mean image, if there is one, by name."""
    mean_image, known = config.preprocessing.mean_image, config.known
    more = {} if mean_image is None else {"mean_image": torch.from_numpy(mean_image)}
    more |= {} if known is None else {f"{KNOWN}{name}": tensor for name, tensor in known.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in {**network.state_dict(), **more}.items()}


def _sha256_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _with_checksum(config: ModelConfig, weights_sha256: str = "") -> ModelConfig:
    config = config.model_copy(update={"sha256": weights_sha256})
    return config.model_copy(update={"checksum": config.digest()})


def read_config(folder: RunFolder) -> ModelConfig:
    """Read `model.json`, or the metadata of an epoch's weights; a mean image, saved with the weights, is not filled in."""
    return _read_epoch_config(folder) if is_epoch(folder.weights) else _read_model_json(folder)


def _read_epoch_config(folder: RunFolder) -> ModelConfig:
    path = folder.weights
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
            found = _sha256_of({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a mapping
    except (OSError, TypeError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error_reason(error)}") from error
    if metadata is None:  # as earlier versions wrote it
        config = _read_model_json(folder).model_copy(update={"sha256": ""})
    else:
        config = _checked(parse_model(ModelConfig, metadata.get("config", ""), path), path)
    if config.sha256 not in ("", found):
        raise RunError(f"{path} is damaged: the SHA-256 of its weights differs from the one in its metadata")
    # The temperature in model.json was fitted to other weights.
    return config.model_copy(update={"temperature": 1.0, "sha256": sha256(path)})


def _read_model_json(folder: RunFolder) -> ModelConfig:
    path = folder.config
    if not path.exists():
        raise RunError(f"{folder.path} has no trained network yet: {folder.resume_command} resumes it")
    return _checked(read_model(ModelConfig, path), path)


def _checked(config: ModelConfig, path: Path) -> ModelConfig:
    if config.checksum and config.checksum != config.digest():
        raise RunError(f'{path} was changed after it was written; if you changed it, remove its "checksum" too')
    return config


def read_model(kind: type[Model], path: Path) -> Model:
    """Read a JSON file into a pydantic model."""
    try:
        return parse_model(kind, path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error_reason(error)}") from error


def parse_model(kind: type[Model], text: str, path: Path) -> Model:
    """Read JSON into a pydantic model; `path` is the file that it comes from."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        newer = "; it was written by a newer version of alexnet" if first["loc"] == ("version",) else ""
        key = ".".join(map(str, first["loc"])) or "the file"
        raise RunError(f"{path} cannot be used: {key}: {first['msg']}{newer}") from error


def write_metrics(folder: RunFolder, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `metrics.csv`, one row per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder.metrics, text.getvalue())


def read_metrics(folder: RunFolder, columns: Sequence[str]) -> list[dict[str, float]]:
    """Return `columns` of `metrics.csv`, one row per epoch."""
    try:
        with folder.metrics.open(encoding="utf-8", newline="") as file:
            rows = [{OLD_COLUMNS.get(name, name): value for name, value in row.items()} for row in csv.DictReader(file)]
        return [{name: float(row[name]) for name in columns} for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder.metrics} cannot be read: {error_reason(error)}") from error


def load_model(folder: RunFolder, device: torch.device) -> tuple[AlexNet, ModelConfig]:
    """Load the network of a run on `device`, in evaluation mode, and its config."""
    config = read_config(folder)
    try:
        if sha256(folder.weights) != config.sha256:
            raise RunError(f"{folder.weights} is damaged: its SHA-256 differs from the one in model.json")
        network, tensors = config.network(), safetensors.torch.load_file(folder.weights, device=str(device))
        if isinstance(config.preprocessing.mean, str) and "mean_image" in tensors:
            preprocessing = config.preprocessing.model_copy(update={"mean_image": tensors.pop("mean_image").cpu().numpy()})
            config = config.model_copy(update={"preprocessing": preprocessing})
        elif config.preprocessing.mean in ("image", "image-centre"):
            raise RunError(f"{folder.weights} has no mean image, which its preprocessing subtracts")
        config = config.model_copy(update={"known": _take_known(tensors, network)})
        network.load_state_dict(tensors, assign=True)
    except OSError as error:
        raise RunError(f"{folder.weights} cannot be read: {error_reason(error)}") from error
    except VariantError as error:
        advice = "" if config.variant in VARIANTS else "; if it is your own, define it before you load the run"
        raise RunError(f"{folder.config} does not describe a network: {error}{advice}") from error
    except (safetensors.SafetensorError, RuntimeError, TypeError) as error:
        raise RunError(f"{folder.weights} does not fit model.json: {str(error).splitlines()[0]}") from error
    return to_device(network, device).eval(), config


def _take_known(tensors: dict[str, torch.Tensor], network: AlexNet) -> Known | None:
    """Take the state of `Known` out of a file's tensors, if it is there."""
    state = {name.removeprefix(KNOWN): tensors.pop(name) for name in [*tensors] if name.startswith(KNOWN)}
    return Known.from_state(state, network.head.in_features, network.head.out_features) if state else None
