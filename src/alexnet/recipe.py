"""Recipes: how to train, as typed settings read from a TOML file.

A recipe is `recipes/<name>.toml` of this package or any file of that form. What it leaves out has the default written here;
an unknown key or a wrong type is refused when it is read, in one line that names the key, the value and what would be right.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alexnet.errors import RecipeError, nearest
from alexnet.network.variants import VARIANTS

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Channels = tuple[float, float, float]


class Settings(BaseModel):
    """Frozen, strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Settings):
    """`[model]`: the network. A field left out is as the variant's row says."""

    variant: str = "cifar10"
    width: Annotated[float, Field(gt=0)] = 1.0
    activation: Literal["relu", "tanh"] | None = None
    norm: Literal["batch", "local", "none"] | None = None
    batch_norm_momentum: Fraction | None = None
    dropout: Fraction | None = None
    towers: Positive | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """The row's fields that this recipe changes."""
        return self.model_dump(exclude={"variant", "width"}, exclude_none=True)


class Data(Settings):
    """`[data]`: the images, and what is held out of them where they do not come split."""

    dataset: str = "digits"
    root: Path | None = None  # folder of downloads; None: ALEXNET_DATA, else the system's folder for caches
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of each class
    test: Fraction = 0.2
    split_seed: int = 0  # not the training's seed, so that runs with several seeds see the same split
    workers: Positive = Field(default_factory=lambda: os.cpu_count() or 1)  # threads that decode and prepare batches


class Images(Settings):
    """`[images]`: from a file to what the network sees."""

    stored: Positive | Literal["auto"] = "auto"  # pixels a side in the cache; auto: as the dataset's, at most `input`
    input: Positive = 227  # pixels a side at the network
    fit: Literal["crop", "stretch"] = "crop"  # shorter side to `stored` and centre crop, or both sides to `stored`
    reduced_decode: bool = False  # let JPEG decode at 1/2, 1/4, 1/8 scale, where that is still larger than `stored`
    resize: Literal["nearest", "bilinear"] = "bilinear"  # from `stored` to `input`
    mean: Channels | Literal["dataset"] = "dataset"  # of 0 to 1, each channel
    deviation: Channels | Literal["dataset"] = "dataset"


class Augment(Settings):
    """`[augment]`: random changes of training images."""

    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # up to this share of the side, each way; the border is reflected
    mirror: bool | Literal["auto"] = "auto"  # half of the images; auto: unless the dataset says that left and right matter


class Train(Settings):
    """`[train]`: how long, in which batches, and what is kept."""

    epochs: Positive = 30
    max_images: Annotated[int, Field(ge=0)] = 0  # a large dataset takes fewer epochs, so that no more are drawn; 0: no limit
    minutes: Annotated[float, Field(gt=0)] | None = None  # if set, training ends then, however many epochs that makes
    batch: Annotated[int, Field(ge=2)] = 128
    seed: Annotated[int, Field(ge=0)] = 0
    keep: Literal["best", "last"] = "best"
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class Optimizer(Settings):
    """`[optimizer]`: stochastic gradient descent."""

    rate: Annotated[float, Field(gt=0)] = 0.01  # at the peak of the schedule
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4  # not on norms and biases
    rate_factors: dict[str, Annotated[float, Field(ge=0)]] = {}  # by layer, such as {fc6 = 0.1}; others take the rate as it is


class Schedule(Settings):
    """`[schedule]`: one cycle. The rate climbs from 0 to its peak over `warmup` of the training and falls to 0 by its end."""

    warmup: Fraction = 0.2


class Recipe(Settings):
    """All settings of a training; `name` is that of the file it comes from."""

    name: str = ""
    model: Model = Model()
    data: Data = Data()
    images: Images = Images()
    augment: Augment = Augment()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()

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
            raise RecipeError(f"cannot read the recipe {name}: {getattr(error, 'strerror', None) or error}") from error
        raise RecipeError(f"no recipe {name!r}: {nearest(name, names())} (a file of your own ends in .toml)") from error


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
    """`train.epochs=5` -> ("train.epochs", 5); a value that is not TOML is taken as a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"--set {text!r}: write it as key=value, for example train.epochs=5")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


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
        place = first["loc"][:2]
        key = ".".join(map(str, place))
        if first["type"] == "extra_forbidden":
            raise RecipeError(f"{origin}: no setting {key!r}: {_nearest_key(key)}") from error
        same = [e["msg"].removeprefix("Input should be ") for e in error.errors() if e["loc"][:2] == place]
        wanted = " or ".join(dict.fromkeys(same))
        raise RecipeError(f"{origin}: {key} is {first['input']!r}, but should be {wanted}") from error
    if recipe.model.variant not in VARIANTS:
        raise RecipeError(f"{origin}: model.variant is {recipe.model.variant!r}: {nearest(recipe.model.variant, VARIANTS)}")
    return recipe


def _nearest_key(key: str) -> str:
    defaults = Recipe().model_dump()
    return nearest(key, [f"{section}.{name}" for section, keys in defaults.items() if isinstance(keys, dict) for name in keys])
