"""Recipes: how to train, as typed settings read from a TOML file.

A recipe is `recipes/<name>.toml` of this package or any file of that form. What it leaves out has the default written here;
an unknown key or a wrong type is refused when it is read, in one line that names the key, the value and what would be right.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    field_validator,
)

from alexnet.errors import RecipeError, error_reason, suggest
from alexnet.files import local_path
from alexnet.network.variants import VARIANTS

Fraction = Annotated[float, Field(ge=0, lt=1)]
Proportion = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=8192)]  # pixels; a file that asks for more was made to take all memory
Channels = tuple[float, float, float]
Scales = tuple[PositiveFloat, PositiveFloat, PositiveFloat]

# Keys of earlier versions, whose runs still open.
RENAMED = {
    "images.stored": "images.cache_size",
    "images.levels": "images.value_range",
    "images.deviation": "images.std",
    "images.mirror": "images.horizontal_flip",
    "images.enlarge": "images.upscale",
    "augment.mirror": "augment.horizontal_flip",
    "augment.flip": "augment.vertical_flip",
    "augment.alternate": "augment.alternating_flip",
    "model.whiten": "model.whitening_init",
    "train.batch": "train.batch_size",
    "optimizer.rate": "optimizer.lr",
    "optimizer.rate_factors": "optimizer.lr_scale",
    "optimizer.muon": "optimizer.muon_lr",
    "schedule.grow": "schedule.progressive_resize",
    "schedule.table.rate": "schedule.table.lr",
    "schedule.table.rate_factors": "schedule.table.lr_scale",
}

# What belongs to the machine and not to the training: runs that differ in nothing else are trained alike.
MACHINE_KEYS = ("data.root", "data.workers", "train.threads", "train.tensorboard")


class Settings(BaseModel):
    """Frozen, strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Settings):
    """`[model]`: the network. A field left out is as the variant's row says."""

    variant: str = "cifar10"
    weights: str = ""  # start from these: imagenet1k, a file in torchvision's layout, or a run folder
    whitening_init: bool = False  # the first layer starts from the principal components of patches of training images
    width: PositiveFloat = 1.0
    activation: Literal["relu", "tanh"] | None = None
    norm: Literal["batch", "local", "none"] | None = None
    batch_norm_momentum: Fraction | None = None
    pool: tuple[Count, Count] | None = None  # window and stride, in pixels
    dropout: Fraction | None = None
    towers: Count | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """The row's fields that this recipe changes."""
        return self.model_dump(exclude={"variant", "weights", "whitening_init", "width"}, exclude_none=True)


class Data(Settings):
    """`[data]`: the images, and what is held out of them where they do not come split."""

    dataset: str = "digits"
    root: Path | None = None  # folder of downloads; None: ALEXNET_DATA, else the system's folder for caches
    split: Literal["hash", "first", "keras-tail", "train_test_split"] = "hash"  # which images validate (data/splits.py)
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share, of each class with `hash`, else of all
    test: Fraction = 0.2
    split_seed: int = 0  # not the training's seed, so that runs with several seeds see the same split
    workers: Count = Field(default_factory=lambda: os.cpu_count() or 1)  # threads that decode and prepare batches


class Preprocessing(Settings):
    """`[images]`: from a file to what the network sees, in this order. Kept with the weights, in `model.json`.

    Sizes are pixels a side; `mean`, `std` and `brightness` are in units of `value_range`. A word in place of a number
    stands for figures of the dataset, which `resolved` settings have.

    Attributes:
        mean_image: S S 3 float32, grey levels 0 to 255, S = `side`, where `mean` names one; it lies beside the weights.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    cache_size: Side | Literal["auto", "full"] = "auto"  # of an image in the cache; auto: the dataset's, at most `input`
    fit: Literal["crop", "stretch"] = "crop"  # shorter side to `cache_size` and centre crop, or both sides to `cache_size`
    filter: Literal["bicubic", "nearest"] = "bicubic"  # from the file to `cache_size`
    reduced_decode: bool = False  # let JPEG decode at 1/2, 1/4, 1/8 scale, where that is still larger than `cache_size`
    crop: Side | None = None  # cut out of the cached image: the centre, but see augment.crop
    value_range: Literal[1, 255] = 1  # the value of white; black is 0
    mean: float | Channels | Literal["channels", "one", "image", "image-centre", "each"] = "channels"
    std: PositiveFloat | Scales | Literal["channels", "one", "each"] = "channels"
    horizontal_flip: bool = False  # of every image, in validation and prediction too
    brightness: float = 0.0  # added to every image, in validation and prediction too
    input: Side = 227  # at the network
    resize: Literal["nearest", "bilinear"] = "bilinear"  # from the crop, or the cached image, to `input`
    antialias: bool = True  # where `resize` makes smaller
    # Resize to input / upscale instead, and make every pixel a block of upscale x upscale. Where that is the first layer's
    # stride and it has no padding, it costs nothing (network/fast/fuse.py). auto: 4 for images no larger than input / 4, or 1.
    upscale: Side | Literal["auto"] = 1
    mean_image: Any = Field(default=None, exclude=True, repr=False)

    @field_validator("mean_image")
    @classmethod
    def _is_array(cls, value: Any) -> Any:
        if value is not None and not hasattr(value, "shape"):
            raise ValueError("left out: it is measured")
        return value

    @property
    def side(self) -> int:
        """Pixels a side of an image as batches hold it."""
        if self.cache_size == "full":
            return self.input
        assert isinstance(self.cache_size, int)  # resolved
        return self.cache_size

    @property
    def resized(self) -> int:
        """Pixels a side before they are upscaled."""
        return self.input // self.scale_factor

    @property
    def scale_factor(self) -> int:
        """`upscale`, resolved: what the network takes beside its input."""
        assert isinstance(self.upscale, int)
        return self.upscale

    def decode_options(self) -> dict[str, Any]:
        """Return the settings of `data.decode.stored_pixels`."""
        return self.model_dump(include={"cache_size", "fit", "filter", "reduced_decode"})

    def resolved(self, mean_image: Any = None) -> Preprocessing:
        """Return a copy with three numbers for one; words for figures that nobody has measured become mean 0 and std 1."""
        changes: dict[str, Any] = {"mean_image": mean_image}
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            value = getattr(self, name)
            value = neutral if value in ("channels", "one") else value
            changes[name] = (value,) * 3 if isinstance(value, float) else value
        return self.model_copy(update=changes)


class Augment(Settings):
    """`[augment]`: random changes of training images."""

    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # up to this share of the side, each way; the border is reflected
    crop: bool = False  # images.crop from anywhere, instead of the centre
    horizontal_flip: bool | Literal["auto"] = (
        "auto"  # half of the images; auto: unless the dataset says that left and right matter
    )
    alternating_flip: bool = False  # flip each image left to right every other epoch, instead of by chance
    vertical_flip: bool = False  # half of the images, top to bottom
    together: Count = 1  # images in a row that get the same crop and horizontal flip
    # One affine map about the centre, as Keras' ImageDataGenerator: edge pixels are repeated outside.
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0  # degrees, each way
    translation: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the side, each way
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0  # degrees, each way
    zoom: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)  # drawn for each axis on its own
    colour_noise: NonNegativeFloat = 0.0  # along the principal components of RGB (paper, section 4.1)
    colour_axes: tuple[Channels, Channels, Channels] | Literal["deviations", "variances"] = "deviations"  # of unit noise
    colour_shrink: bool = False  # divide the image by 1 + colour_noise after that


class Train(Settings):
    """`[train]`: how long, in which batches, and what is kept."""

    epochs: Count = 30
    max_images: NonNegativeInt = 0  # a large dataset takes fewer epochs, so that no more are drawn; 0: no limit
    minutes: PositiveFloat | None = None  # if set, training ends then, however many epochs that makes
    batch_size: Annotated[int, Field(ge=2)] | Literal["auto"] = 128  # auto: a 20th of the training images, 32 to 256
    last_batch: Literal["even", "short", "drop"] = "even"  # even: all batches alike, none larger than `batch_size`
    seed: NonNegativeInt = 0
    keep: Literal["best", "last"] = "best"
    loss: Literal["cross-entropy", "binary"] = "cross-entropy"
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: NonNegativeInt = 0  # of the CPU; 0: a core each. Other numbers round otherwise, so resuming keeps it
    # On several processes that each have a part of a batch: norms take the statistics of all of it, else of their part.
    synchronised_norm: bool = True
    save_epochs: str = ""  # keep each epoch's weights under this name, such as "cp-{epoch:04d}"
    tensorboard: str = "tensorboard"  # folder in the run; %Y, %m, %d, %H, %M, %S become the date and time


class Optimizer(Settings):
    """`[optimizer]`: stochastic gradient descent (the formulas are in training/optimizer.py)."""

    form: Literal["pytorch", "keras", "2012"] = "pytorch"
    lr: PositiveFloat = 0.01  # at the start, or at the peak of one cycle
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4
    decays: Literal["weights", "all"] = "weights"  # all: biases, and the norms' scales and shifts too
    # By layer ({fc6 = 0.1}), for all biases ({bias = 2}), or for one of them ({"conv1.weight" = 0.1}); what matches multiplies.
    lr_scale: dict[str, NonNegativeFloat] = {}
    # Convolutions move by orthogonalised momentum (Muon) at this rate, which follows `lr`'s schedule; 0: as all others do.
    muon_lr: NonNegativeFloat = 0.0
    muon_momentum: Fraction = 0.6
    frozen: str | None = None  # the last of the layers that keep their first weights and statistics, such as "pool5"


class Change(Settings):
    """A row of the epoch table: from `epoch` on these hold; what is left out stays as it was."""

    epoch: Count
    lr: PositiveFloat | None = None
    lr_scale: dict[str, NonNegativeFloat] = {}  # as optimizer.lr_scale; 0 freezes
    colour_noise: NonNegativeFloat | None = None


class Schedule(Settings):
    """`[schedule]`: the rate over time.

    `one-cycle`: up in a line from 0 over `warmup` of the training, then down to 0. `constant`: but for the rows of `table`.
    `step`: times `factor` every `every` epochs. `plateau`: times `factor`, not below `floor`, once `metric` has not improved
    by `threshold` for `patience` epochs.
    """

    kind: Literal["one-cycle", "constant", "step", "plateau"] = "one-cycle"
    warmup: Fraction = 0.2
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    every: Count = 30
    metric: Literal["train_loss", "val_loss", "val_error"] = "val_loss"
    patience: Count = 10
    threshold: NonNegativeFloat = 1e-4
    floor: NonNegativeFloat = 0.0
    table: tuple[Change, ...] = ()
    # Smaller inputs first: rows of (until this share of the training, this share of images.input); then images.input.
    progressive_resize: tuple[tuple[Proportion, Proportion], ...] = ()


class Stop(Settings):
    """`[stop]`: end early, once `metric` has not improved for `patience` epochs, or an epoch's training error is small enough.

    0: never.
    """

    metric: Literal["train_loss", "val_loss", "val_error"] = "val_loss"
    patience: NonNegativeInt = 0
    train_error: Fraction = 0.0  # top-1 on the training images as they are trained on


class Recipe(Settings):
    """All settings of a training; `name` is that of the file it comes from."""

    name: str = ""
    model: Model = Model()
    data: Data = Data()
    images: Preprocessing = Preprocessing()
    augment: Augment = Augment()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    stop: Stop = Stop()

    def to_toml(self) -> str:
        """Return the recipe as TOML, every key written out (but those that are None)."""
        return tomli_w.dumps(self.model_dump(exclude_none=True, mode="json"))

    def with_settings(self, changes: Mapping[str, Any]) -> Recipe:
        """Return a copy with dotted keys replaced, `{"train.epochs": 5}`.

        Raises:
            RecipeError: unknown key, wrong type, value out of range.
        """
        tree = self.model_dump(exclude_none=True)
        for key, value in changes.items():
            section, _, name = key.partition(".")
            if not isinstance(tree.get(section), dict):
                raise RecipeError(f"no setting {key!r}: {_nearest_key(key)}")
            tree[section] = {**tree[section], name: value}
        return parse(tree, "recipe")

    def from_anywhere(self) -> Recipe:
        """Return a copy whose dataset, if it lies on a disk, is found from other folders too."""
        local = local_path(self.data.dataset)
        return self.with_settings({"data.dataset": str(local)}) if local.exists() else self

    def scaled_rates(self, scale: float) -> dict[str, float]:
        """Return the keys, with their values, that make all rates `scale` times as high; the factors of layers stay."""
        rates = {"optimizer.lr": self.optimizer.lr, "optimizer.muon_lr": self.optimizer.muon_lr}
        return {key: float(f"{rate * scale:.3g}") for key, rate in rates.items() if rate}


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a recipe's TOML with their values, dotted: `{"name": "fast", "train.epochs": 5, …}`."""
    return {
        f"{section}.{key}".rstrip("."): value
        for section, keys in tree.items()
        for key, value in (keys.items() if isinstance(keys, dict) else [("", keys)])
    }


def names() -> list[str]:
    """Names of the recipes inside the package."""
    return sorted(f.name.removesuffix(".toml") for f in files("alexnet.recipes").iterdir() if f.name.endswith(".toml"))


def read_text(name: str) -> str:
    """Return the text of a recipe: a name of `names()`, or the path of a TOML file.

    Raises:
        RecipeError: neither.
    """
    if name in names():
        return (files("alexnet.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if name.endswith(".toml"):
            raise RecipeError(f"cannot read the recipe {name}: {error_reason(error)}") from error
        raise RecipeError(f"no recipe {name!r}: {suggest(name, names())} (a file of your own ends in .toml)") from error


def load(name: str) -> Recipe:
    """Read a recipe: a name of `names()`, or the path of a TOML file.

    Raises:
        RecipeError: no such recipe, not TOML, unknown key, wrong type, value out of range.
    """
    try:
        tree = tomllib.loads(read_text(name))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name} is not valid TOML: {error}") from error
    return parse({"name": Path(name).stem, **tree}, name)


def settings_from(texts: Iterable[str]) -> dict[str, Any]:
    """Return what `--set` texts of the form `key=value` say, values as in TOML.

    Raises:
        RecipeError: a text without `=`.
    """
    return dict(_key_and_value(text) for text in texts)


def _key_and_value(text: str) -> tuple[str, Any]:
    """`train.epochs=5` -> ("train.epochs", 5); what is not TOML, or is for a key that takes text alone, stays text."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise RecipeError(f"--set {text!r}: write it as key=value, for example train.epochs=5")
    try:
        result = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
    section, _, name = key.partition(".")
    field = getattr(type(getattr(Recipe(), section, None)), "model_fields", {}).get(name)
    return key, value if field is not None and not isinstance(result, str) and _is_text(field.annotation) else result


def _is_text(kind: Any) -> bool:
    """Tell whether a value of this type is text, whatever it looks like: `2012` is a form of SGD."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return all(isinstance(word, str) for word in inner)
    return all(map(_is_text, inner)) if inner else kind in (str, Path, NoneType)


def parse(tree: Mapping[str, Any], origin: str) -> Recipe:
    """Return the recipe that a parsed TOML file holds; `origin` names the file in errors.

    Raises:
        RecipeError: unknown key, wrong type, value out of range.
    """
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        # The first error is enough: the next shows once it is mended. A union's branches add their type's name to the path.
        first = error.errors()[0]
        depth = {"schedule.table": 5, "optimizer.lr_scale": 3}.get(".".join(map(str, first["loc"][:2])), 2)
        path = first["loc"][:depth]
        key = ".".join(map(str, path))
        if first["type"] == "extra_forbidden":
            raise RecipeError(f"{origin}: no setting {key!r}: {_nearest_key(key)}") from error
        same = [e for e in error.errors() if e["loc"][:depth] == path]
        words = ["given in full" if e["type"] == "missing" else e["msg"].removeprefix("Input should be ") for e in same]
        expected = " or ".join(dict.fromkeys(words))
        raise RecipeError(f"{origin}: {key} is {first['input']!r}, but should be {expected}") from error
    if recipe.model.variant not in VARIANTS:
        raise RecipeError(f"{origin}: model.variant is {recipe.model.variant!r}: {suggest(recipe.model.variant, VARIANTS)}")
    if conflict := _conflict(recipe):
        raise RecipeError(f"{origin}: {conflict}")
    return recipe


def _conflict(recipe: Recipe) -> str:
    """Return what contradicts itself in a recipe whose keys are right one by one; empty if nothing does."""
    images, augment, schedule, pattern = recipe.images, recipe.augment, recipe.schedule, recipe.train.save_epochs
    if (images.mean == "each") != (images.std == "each"):
        return f"images.mean is {images.mean!r} and images.std {images.std!r}: 'each' goes with 'each'"
    if augment.crop and images.crop is None:
        return "augment.crop is true, but images.crop says no size to cut out"
    noises = (augment.colour_noise, *(row.colour_noise for row in schedule.table))
    if images.mean == "each" and any(noises):
        return f"augment.colour_noise is {max(filter(None, noises))}, but images.mean 'each' leaves colours no common scale"
    if images.crop is not None and isinstance(images.cache_size, int) and images.crop > images.cache_size:
        return f"images.crop is {images.crop}, but images are stored at {images.cache_size}"
    if images.crop is not None and images.cache_size == "full" and images.crop > images.input:
        return f"images.crop is {images.crop}, but full images are scaled to images.input, {images.input}, before"
    if augment.zoom[0] > augment.zoom[1]:
        return f"augment.zoom is {list(augment.zoom)}, but the smaller factor comes first"
    if images.upscale not in ("auto", 1) and images.cache_size == "full":
        return f"images.upscale is {images.upscale}, but full images are scaled to images.input before"
    if augment.alternating_flip and augment.together > 1:
        return (
            "augment.alternating_flip is true, but "
            f"augment.together is {augment.together}: images in a row are flipped together"
        )
    if isinstance(images.upscale, int) and images.input % images.upscale:
        return f"images.input is {images.input}, which is no multiple of images.upscale, {images.upscale}"
    if schedule.kind != "constant" and any(row.lr is not None for row in schedule.table):
        return f"schedule.table sets rates, but schedule.kind is {schedule.kind!r}, not 'constant'"
    if pattern and not re.fullmatch(r"[\w.-]*\{epoch(:0?\d+d)?\}[\w.-]*", pattern):
        return f"train.save_epochs is {pattern!r}, but should be a file's name with a place for the epoch: cp-{{epoch:04d}}"
    if Path(recipe.train.tensorboard).is_absolute() or ".." in Path(recipe.train.tensorboard).parts:
        return f"train.tensorboard is {recipe.train.tensorboard!r}, but should be a folder inside the run"
    return ""


def renamed(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return a recipe's TOML with the keys of earlier versions as they are called now."""
    result = {}
    for key, value in tree.items():
        here = f"{path}{key}"
        if here == "schedule.table":
            value = [renamed(row, "schedule.table.") for row in value]
        elif isinstance(value, dict) and not path:
            value = renamed(value, f"{here}.")
        result[RENAMED[here].rpartition(".")[2] if here in RENAMED else key] = value
    return result


def _nearest_key(key: str) -> str:
    if name := RENAMED.get(re.sub(r"\.\d+\.", ".", key)):
        return f"it is called {name!r} now"
    if key.startswith("schedule.table."):
        return suggest(key.rpartition(".")[2], Change.model_fields)
    return suggest(key, (known for known in flat(Recipe().model_dump()) if known != "name"))
