"""Recipes: typed training settings, read from a TOML file.

A recipe is `recipes/<name>.toml` in this package, or a file of your own. Keys that it leaves out take the defaults below.
Unknown keys and wrong values raise a `RecipeError` that names the key, the value and what is allowed.
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
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, ValidationError, field_validator

from alexnet.errors import RecipeError, error_reason, suggest
from alexnet.files import local_path
from alexnet.network.variants import VARIANTS

Fraction = Annotated[float, Field(ge=0, lt=1)]
Proportion = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=1, le=8192)]  # pixels; the limit protects memory from hostile files
Channels = tuple[float, float, float]
Scales = tuple[PositiveFloat, PositiveFloat, PositiveFloat]

# Keys of earlier versions: refused in recipes, accepted in runs that those versions made.
OLD_NAMES = {
    "images": dict(stored="cache_size", levels="value_range", deviation="std", mirror="horizontal_flip", enlarge="upscale"),
    "augment": dict(mirror="horizontal_flip", flip="vertical_flip", alternate="alternating_flip"),
    "model": dict(whiten="whitening_init"),
    "train": dict(batch="batch_size"),
    "optimizer": dict(rate="lr", rate_factors="lr_scale", muon="muon_lr"),
    "schedule": dict(grow="progressive_resize"),
    "schedule.table": dict(rate="lr", rate_factors="lr_scale"),
}
RENAMED = {f"{section}.{old}": f"{section}.{new}" for section, names in OLD_NAMES.items() for old, new in names.items()}

# Keys that describe the machine: they do not change what is trained.
MACHINE_KEYS = ("data.root", "data.cache", "data.workers", "train.threads", "train.tensorboard")

# Names of files in a run folder, and of the folder of its checkpoints.
OF_RUNS = re.compile(r"checkpoint|[a-z]+\.(toml|safetensors|json|csv|txt|lock|html)")


class Settings(BaseModel):
    """Base class: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Settings):
    """`[model]`: the network. A field that is left out keeps the variant's value."""

    variant: str = "cifar10"
    weights: str = ""  # initial weights: imagenet1k, a file in torchvision's layout, a run folder, or a file in its epochs/
    whitening_init: bool = False  # initialize the first layer from the principal components of training image patches
    fit_head: bool = False  # initialize the last layer from the training images' codes, its inputs (head/fit.py)
    width: PositiveFloat = 1.0
    activation: Literal["relu", "tanh"] | None = None
    norm: Literal["batch", "local", "local-each", "none"] | None = None  # local: after the first two convolutions alone
    batch_norm_momentum: Fraction | None = None
    pool: tuple[Count, Count] | None = None  # window and stride, in pixels
    dropout: Fraction | Literal["auto"] | None = None  # auto: the variant's for many epochs of photos, else 0 (data/dataset.py)
    towers: Count | None = None
    dense_units: Count | None = None  # in each dense layer but the head

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of the variant that this recipe changes; `auto` is not resolved."""
        fields = self.model_dump(exclude={"variant", "weights", "whitening_init", "fit_head", "width"}, exclude_none=True)
        return {name: value for name, value in fields.items() if value != "auto"}


class Data(Settings):
    """`[data]`: the dataset, and how to split it if it is not split already."""

    dataset: str = "digits"
    root: Path | None = None  # folder of downloads; None: ALEXNET_DATA, else the system's cache folder
    split: Literal["hash", "first", "last", "keras-tail", "train_test_split"] = "hash"  # of validation images (data/splits.py)
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1  # fraction; of each class with `hash`, else of all images
    test: Fraction = 0.2
    split_seed: int = 0  # apart from train.seed, so that runs with other seeds have the same split
    near_duplicates: Literal["together", "ignored"] = (
        "together"  # in one split, if it is made by hash (data/near_duplicates.py)
    )
    folds: CountOrZero = 0  # if set, the images are divided into so many folds, and `fold`, from 1 on, is the test set
    fold: CountOrZero = 0
    # Where decoded images are kept: on disk; nowhere, so that each epoch decodes them again; auto: on disk if they fit.
    cache: Literal["auto", "disk", "none"] = "auto"
    workers: Count = Field(default_factory=lambda: os.cpu_count() or 1)  # threads that decode and prepare batches
    # Columns of a table; None: those with a common name (data/columns.py). Images of a group are in the same split.
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    none_label: str = "none"  # images with this label show no class: they help to tell such images (training/known.py)
    label_names: str | None = None  # of label numbers: A,B,C or a file; None: labels.txt or classes.txt beside the table

    @property
    def columns(self) -> dict[str, str]:
        """The columns of a table that are named here: `{"image": "filename"}`."""
        names = {name: getattr(self, f"{name}_column") for name in ("image", "label", "split", "group")}
        return {name: column for name, column in names.items() if column is not None}


class Preprocessing(Settings):
    """`[images]`: preprocessing from file to network input, in this order. Saved with the weights, in `model.json`.

    Sizes are in pixels per side; `mean`, `std` and `brightness` are in units of `value_range`. A word in place of a number
    is a statistic of the dataset; `resolved` settings hold its value.

    Attributes:
        mean_image: S S 3 float32, grey levels 0 to 255, S = `side`, if `mean` asks for one; saved with the weights.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    cache_size: Side | Literal["auto", "full"] = "auto"  # of cached images; auto: the dataset's median, at most `input`
    # crop: scale the shorter side to `cache_size` and crop the centre; stretch: scale both sides; torchvision: like crop, but
    # at whole pixels of the scaled image, as its Resize and CenterCrop do
    fit: Literal["crop", "stretch", "torchvision"] = "crop"
    filter: Literal["bicubic", "bilinear", "nearest"] = "bicubic"  # for scaling to `cache_size`
    reduced_decode: bool = False  # decode JPEG at 1/2, 1/4 or 1/8 scale if that is not smaller than `cache_size`
    crop: Side | None = None  # of the cached image: the centre, unless augment.crop is set
    value_range: Literal[1, 255] = 1  # the value of white; black is 0
    mean: float | Channels | Literal["channels", "one", "image", "image-centre", "each"] = "channels"
    std: PositiveFloat | Scales | Literal["channels", "one", "each"] = "channels"
    horizontal_flip: bool = False  # of every image, in validation and prediction too
    brightness: float = 0.0  # added to every image, in validation and prediction too
    # Size of the network's input. auto: 227 for photos that are few enough for the time (training/pace.py), else 128.
    input: Side | Literal["auto"] = 227
    resize: Literal["nearest", "bilinear"] = "bilinear"  # from the crop, or the cached image, to `input`
    antialias: bool = True  # when `resize` makes images smaller
    # Resize to input / upscale, then repeat every pixel upscale x upscale times. This costs nothing if upscale is the first
    # layer's stride and it has no padding (network/fast/fuse.py). auto: 4 for images no larger than input / 4, else 1.
    upscale: Side | Literal["auto"] = 1
    # Views of an image whose probabilities are averaged, in validation and prediction (inference/views.py): 2 adds the mirror
    # image. auto: 2 for images that are upscaled and may be mirrored, else 1.
    views: Literal[1, 2, 10, "auto"] = 1
    mean_image: Any = Field(default=None, exclude=True, repr=False)

    @field_validator("mean_image")
    @classmethod
    def _is_array(cls, value: Any) -> Any:
        if value is not None and not hasattr(value, "shape"):
            raise ValueError("left out: it is computed from the training images")
        return value

    @property
    def side(self) -> int:
        """Pixels per side of the images in a batch."""
        if self.cache_size == "full":
            return self.input_side
        assert isinstance(self.cache_size, int)  # resolved
        return self.cache_size

    @property
    def input_side(self) -> int:
        """`input`, resolved."""
        assert isinstance(self.input, int)
        return self.input

    @property
    def resized(self) -> int:
        """Pixels per side before upscaling."""
        return self.input_side // self.scale_factor

    @property
    def scale_factor(self) -> int:
        """`upscale`, resolved."""
        assert isinstance(self.upscale, int)
        return self.upscale

    @property
    def view_count(self) -> int:
        """`views`, resolved."""
        assert isinstance(self.views, int)
        return self.views

    def decode_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `data.decode.stored_pixels`."""
        return self.model_dump(include={"cache_size", "fit", "filter", "reduced_decode"})

    def resolved(self, mean_image: Any = None) -> Preprocessing:
        """Return a copy with one number per channel; statistics that were not computed become mean 0 and std 1."""
        changes: dict[str, Any] = {"mean_image": mean_image}
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            value = getattr(self, name)
            value = neutral if value in ("channels", "one") else value
            changes[name] = (value,) * 3 if isinstance(value, float) else value
        return self.model_copy(update=changes)


class Augment(Settings):
    """`[augment]`: random augmentation of training images, in this order."""

    # First, one of eleven operations at a random strength on each image (data/trivial.py). auto: for photos that may be
    # mirrored, if there is time for many epochs.
    trivial: bool | Literal["auto"] = False
    # Factors from 1 - x to 1 + x on brightness, contrast and saturation, as in torchvision's ColorJitter.
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    # One affine map about the centre, as in Keras' ImageDataGenerator; edge pixels are repeated outside.
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0  # degrees, in both directions
    translation: Annotated[float, Field(ge=0, le=1)] = 0.0  # fraction of the side, in both directions
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0  # degrees, in both directions
    zoom: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)  # range of factors, drawn for each axis
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # up to this fraction of the side, in both directions; reflects borders
    crop: bool = False  # take images.crop at a random position instead of the centre
    horizontal_flip: bool | Literal["auto"] = "auto"  # half of the images; auto: unless the dataset rules it out, as digits do
    alternating_flip: bool = False  # flip each image every other epoch instead of at random
    vertical_flip: bool = False  # half of the images, top to bottom
    together: Count = 1  # successive images that share a crop and a horizontal flip
    # Then scale a part of the image to the input's size, as torchvision's RandomResizedCrop does.
    area: tuple[Proportion, Proportion] = (1.0, 1.0)  # range of the part's area, as a fraction of the image's
    aspect: Annotated[float, Field(ge=1)] = 4 / 3  # of the part: width / height is from 1 / aspect to aspect
    colour_noise: NonNegativeFloat = 0.0  # along the principal components of RGB (paper, section 4.1)
    colour_axes: tuple[Channels, Channels, Channels] | Literal["deviations", "variances"] = "deviations"  # scale of components
    colour_shrink: bool = False  # then divide the image by 1 + colour_noise
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.0  # set a rectangle to the mean in this fraction of images
    # Mix each image, and its label, with another one: by a weighted mean, or by a rectangle cut from the other. The weight is
    # drawn from a Beta distribution with both parameters equal to this; 0: never. With both, each for half of the images.
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return self.mixup > 0 or self.cutmix > 0


class Train(Settings):
    """`[train]`: length, batches, loss, and which weights are kept."""

    epochs: CountOrZero = 30  # 0: the head is fitted (model.fit_head), and nothing more is trained
    max_images: CountOrZero = 0  # reduces `epochs` so that about this many images are seen in all; 0: no limit
    minutes: PositiveFloat | None = None  # if set, training takes this long, whatever `epochs` says
    batch_size: Annotated[int, Field(ge=2)] | Literal["auto"] = 128  # auto: a 20th of the training images, 32 to 256
    last_batch: Literal["even", "short", "drop"] = "even"  # even: batches of equal size, none larger than `batch_size`
    seed: CountOrZero = 0
    keep: Literal["best", "last"] = "best"
    loss: Literal["cross-entropy", "binary"] = "cross-entropy"
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    # auto: bfloat16 where the hardware computes in it, or else float16 on NVIDIA GPUs and float32 elsewhere
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False  # compile the network with PyTorch; takes a minute for each shape of a batch
    threads: CountOrZero = 0  # CPU threads; 0: one per core. The number affects rounding, so resuming keeps it
    synchronised_norm: bool = True  # batch norm over the whole batch, not each process's part of it
    # Validate and keep an exponential average of the weights; its time constant, as a fraction of the training; 0: none.
    average: Fraction = 0.0
    save_epochs: str = ""  # also save the weights of each epoch, in the run's folder epochs/, as: "cp-{epoch:04d}"
    save_steps: tuple[CountOrZero, ...] | Literal["log"] = ()  # and after these steps; log: 0, 1, 2, 4, 8, ...
    tensorboard: str = "tensorboard"  # folder in the run; may hold %Y, %m, %d, %H, %M and %S

    def saves_step(self, steps: int) -> bool:
        """Return whether `save_steps` asks for the weights after this many steps."""
        return steps & (steps - 1) == 0 if self.save_steps == "log" else steps in self.save_steps


class Optimizer(Settings):
    """`[optimizer]`: stochastic gradient descent (formulas: training/optimizer.py)."""

    form: Literal["pytorch", "keras", "2012"] = "pytorch"
    lr: PositiveFloat = 0.01  # initial, or the peak of a one-cycle schedule
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4
    decays: Literal["weights", "all"] = "weights"  # all: biases and norm parameters too
    # Factors by layer ({fc6 = 0.1}), kind ({bias = 2}) or parameter ({"conv1.weight" = 0.1}); all that match are multiplied.
    lr_scale: dict[str, NonNegativeFloat] = {}
    muon_lr: NonNegativeFloat = 0.0  # train convolutions with Muon at this learning rate, on `lr`'s schedule; 0: with SGD
    muon_momentum: Fraction = 0.6
    # Freeze the layers up to this one, such as "pool5", and their statistics; "features": all but the last.
    frozen: str | None = None


class Change(Settings):
    """A row of `schedule.table`: values that hold from `epoch` on; fields that are left out do not change."""

    epoch: Count
    lr: PositiveFloat | None = None
    lr_scale: dict[str, NonNegativeFloat] = {}  # as optimizer.lr_scale; 0 freezes
    colour_noise: NonNegativeFloat | None = None


class Schedule(Settings):
    """`[schedule]`: the learning rate over time.

    `one-cycle`: rises linearly from 0 during the fraction `warmup` of training, then falls to 0. `constant`: changes only by
    `table`. `step`: is multiplied by `factor` every `every` epochs. `plateau`: is multiplied by `factor`, down to `floor`, when
    `metric` has not improved by `threshold` for `patience` epochs.
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
    # Train on smaller inputs first: rows of (end, as a fraction of training; size, as a fraction of images.input).
    progressive_resize: tuple[tuple[Proportion, Proportion], ...] = ()


class Stop(Settings):
    """`[stop]`: early stopping when `metric` has not improved for `patience` epochs or `train_error` is reached; 0: never."""

    metric: Literal["train_loss", "val_loss", "val_error"] = "val_loss"
    patience: CountOrZero = 0
    train_error: Fraction = 0.0  # top-1 error on the augmented training images of an epoch


class Recipe(Settings):
    """All training settings; `name` is the name of the recipe's file."""

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
        """Return the recipe as TOML, with defaults written out and without keys that are None."""
        return tomli_w.dumps(self.model_dump(exclude_none=True, mode="json"))

    def with_settings(self, changes: Mapping[str, Any]) -> Recipe:
        """Return a copy with dotted keys replaced, `{"train.epochs": 5}`."""
        tree = self.model_dump(exclude_none=True)
        for key, value in changes.items():
            section, _, name = key.partition(".")
            if not isinstance(tree.get(section), dict):
                raise RecipeError(f"no setting {key!r}: {_nearest_key(key)}")
            tree[section] = {**tree[section], name: value}
        return parse(tree, "recipe")

    def with_absolute_dataset(self) -> Recipe:
        """Return a copy with the absolute paths of a local dataset and its label names, so that it works from any folder."""
        given = {"data.dataset": self.data.dataset, "data.label_names": self.data.label_names}
        local = {key: local_path(path) for key, path in given.items() if path}
        here = {key: path for key, path in local.items() if path.exists() or (path.suffix == ".tar" and path.parent.is_dir())}
        return self.with_settings({key: str(path) for key, path in here.items()})

    def scale_lr(self, scale: float) -> dict[str, float]:
        """Return the settings that multiply all learning rates by `scale`; `lr_scale` is unchanged."""
        rates = {"optimizer.lr": self.optimizer.lr, "optimizer.muon_lr": self.optimizer.muon_lr}
        return {key: float(f"{rate * scale:.3g}") for key, rate in rates.items() if rate}


def flatten_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a recipe's TOML to dotted keys: `{"name": "fast", "train.epochs": 5, …}`."""
    return {
        f"{section}.{key}".rstrip("."): value
        for section, keys in tree.items()
        for key, value in (keys.items() if isinstance(keys, dict) else [("", keys)])
    }


def names() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(f.name.removesuffix(".toml") for f in files("alexnet.recipes").iterdir() if f.name.endswith(".toml"))


def read_text(name: str) -> str:
    """Return the text of a recipe, by a name from `names()` or the path of a TOML file."""
    if name in names():
        return (files("alexnet.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if name.endswith(".toml"):
            raise RecipeError(f"cannot read the recipe {name}: {error_reason(error)}") from error
        raise RecipeError(f"no recipe {name!r}: {suggest(name, names())} (the name of a recipe file ends in .toml)") from error


def load(name: str) -> Recipe:
    """Load a recipe by a name from `names()` or the path of a TOML file."""
    try:
        tree = tomllib.loads(read_text(name))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name} is not valid TOML: {error}") from error
    return parse({"name": Path(name).stem, **tree}, name)


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Parse `--set` options: ["train.epochs=5"] -> {"train.epochs": 5}.

    A value that is not TOML, or whose key takes only text, stays text.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise RecipeError(f"--set {text!r}: write it as key=value, for example train.epochs=5")
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = value
        section, _, name = key.partition(".")
        field = getattr(type(getattr(Recipe(), section, None)), "model_fields", {}).get(name)
        if field is not None and not isinstance(settings[key], str) and _is_text(field.annotation):
            settings[key] = value
    return settings


def _is_text(kind: Any) -> bool:
    """Return whether this type takes only text, even text that looks like a number, as `optimizer.form=2012` does."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return all(isinstance(word, str) for word in inner)
    return all(map(_is_text, inner)) if inner else kind in (str, Path, NoneType)


def parse(tree: Mapping[str, Any], origin: str) -> Recipe:
    """Validate a parsed TOML file; `origin` names the file in errors."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        # Report the first error only. pydantic appends the branch of a union to an error's path: cut it off.
        first = error.errors()[0]
        depth = {"schedule.table": 5, "optimizer.lr_scale": 3}.get(".".join(map(str, first["loc"][:2])), 2)
        path = first["loc"][:depth]
        key = ".".join(map(str, path))
        if first["type"] == "extra_forbidden":
            raise RecipeError(f"{origin}: no setting {key!r}: {_nearest_key(key)}") from error
        same = [e for e in error.errors() if e["loc"][:depth] == path]
        ours = {"missing": "complete", "tuple_type": "a list"}
        words = [ours.get(e["type"], e["msg"].removeprefix("Input should be ")) for e in same]
        expected = " or ".join(dict.fromkeys(words))
        raise RecipeError(f"{origin}: {key} is {first['input']!r}, but should be {expected}") from error
    if recipe.model.variant not in VARIANTS:
        raise RecipeError(f"{origin}: model.variant is {recipe.model.variant!r}: {suggest(recipe.model.variant, VARIANTS)}")
    if conflict := _find_conflict(recipe):
        raise RecipeError(f"{origin}: {conflict}")
    return recipe


def _find_conflict(recipe: Recipe) -> str:
    """Return a message about keys that contradict each other; empty if none do."""
    images, augment, schedule, pattern = recipe.images, recipe.augment, recipe.schedule, recipe.train.save_epochs
    if (images.mean == "each") != (images.std == "each"):
        return f"images.mean is {images.mean!r} and images.std {images.std!r}: set both to 'each', or neither"
    if recipe.data.folds and not (recipe.data.folds > 1 and 1 <= recipe.data.fold <= recipe.data.folds):
        return f"data.fold is {recipe.data.fold} of {recipe.data.folds}: there must be 2 folds or more, counted from 1"
    if recipe.data.folds and recipe.data.split != "hash":
        return f"data.split is {recipe.data.split!r}, but data.folds is {recipe.data.folds}: folds are made by 'hash'"
    if not recipe.train.epochs and not recipe.model.fit_head:
        return "train.epochs is 0, so nothing would be trained: set it to 1 or more, or model.fit_head to true"
    if augment.crop and images.crop is None:
        return "augment.crop is true, but images.crop is not set: set it to the size of the crop"
    noises = (augment.colour_noise, *(row.colour_noise for row in schedule.table))
    if images.mean == "each" and any(noises):
        reason = "images.mean is 'each', which scales each image's colours differently"
        return f"augment.colour_noise is {max(filter(None, noises))}, but {reason}"
    if images.crop is not None and isinstance(images.cache_size, int) and images.crop > images.cache_size:
        return f"images.crop is {images.crop}, larger than images.cache_size, {images.cache_size}"
    if isinstance(images.input, int) and images.cache_size == "full" and (images.crop or 0) > images.input:
        return f"images.crop is {images.crop}, but full images are first scaled to images.input, {images.input}"
    if images.fit == "torchvision" and images.cache_size == "full":
        return "images.fit is 'torchvision', but images.cache_size is 'full': set it to the size that images are scaled to"
    if images.fit == "torchvision" and images.reduced_decode:
        return "images.fit is 'torchvision', but images.reduced_decode is true: torchvision decodes images at full scale"
    if augment.zoom[0] > augment.zoom[1]:
        return f"augment.zoom is {list(augment.zoom)}, but the smaller factor comes first"
    if augment.area[0] > augment.area[1]:
        return f"augment.area is {list(augment.area)}, but the smaller fraction comes first"
    if images.upscale not in ("auto", 1) and images.cache_size == "full":
        return f"images.upscale is {images.upscale}, but full images are first scaled to images.input"
    if augment.alternating_flip and augment.together > 1:
        return f"augment.alternating_flip is true, but augment.together is {augment.together}: images would share a flip"
    if isinstance(images.upscale, int) and isinstance(images.input, int) and images.input % images.upscale:
        return f"images.input is {images.input}, which is not a multiple of images.upscale, {images.upscale}"
    if schedule.kind != "constant" and any(row.lr is not None for row in schedule.table):
        return f"schedule.table sets learning rates, but schedule.kind is {schedule.kind!r}, not 'constant'"
    if pattern and not re.fullmatch(r"[\w.-]{,50}\{epoch(:0?\d{1,2}d)?\}[\w.-]{,50}", pattern):
        return f"train.save_epochs is {pattern!r}, but should be a file name that contains the epoch: cp-{{epoch:04d}}"
    tensorboard = Path(recipe.train.tensorboard)
    if tensorboard.is_absolute() or ".." in tensorboard.parts or OF_RUNS.fullmatch("/".join(tensorboard.parts[:1])):
        return f"train.tensorboard is {recipe.train.tensorboard!r}, but should be a folder of its own inside the run"
    paths = {"model.weights": recipe.model.weights, "data.root": str(recipe.data.root), "train.tensorboard": str(tensorboard)}
    paths["data.label_names"] = recipe.data.label_names or ""
    if null := next((key for key, path in paths.items() if "\0" in path), ""):
        return f"{null} is {paths[null]!r}, but a path holds no null character"
    return ""


def rename_keys(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Replace the keys of earlier versions in a recipe's TOML with today's."""
    result = {}
    for key, value in tree.items():
        dotted = f"{path}{key}"
        if dotted == "schedule.table" and isinstance(value, list):
            value = [rename_keys(row, "schedule.table.") if isinstance(row, dict) else row for row in value]
        elif isinstance(value, dict) and not path:
            value = rename_keys(value, f"{dotted}.")
        result[RENAMED[dotted].rpartition(".")[2] if dotted in RENAMED else key] = value
    return result


def _nearest_key(key: str) -> str:
    if name := RENAMED.get(re.sub(r"\.\d+\.", ".", key)):
        return f"it is now called {name!r}"
    name = key.rpartition(".")[2]
    if key.startswith("schedule.table."):
        return suggest(name, Change.model_fields)
    if name in ("lr", "learning_rate"):
        return "did you mean 'optimizer.lr'?"
    return suggest(key, (known for known in flatten_keys(Recipe().model_dump()) if known != "name"))
