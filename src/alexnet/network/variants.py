"""The variants: one row for each architecture.

A row lists its layers in order, like the tables in papers and tutorials. Choices for the whole network (activation,
normalisation, pooling window, dropout, towers, initialization) are fields of the row, used by the layers `Act`, `Norm`, `Pool`
and `Drop`; so a recipe can change any of them. The last layer, the head `fc8`, is not listed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from alexnet.errors import VariantError, suggest


@dataclass(frozen=True)
class Conv:
    """Convolution; with `grouped`, each tower reads only its own channels.

    `bias` is the initial bias (None: no bias), `std` the standard deviation of the initial weights if the variant's `init` is
    `normal`. `padding` zeros are added on every side, `padding_after` more on the right and at the bottom.
    """

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    grouped: bool = False
    bias: float | None = 0.0
    std: float = 0.01
    padding_after: int = 0


@dataclass(frozen=True)
class Dense:
    """Fully connected layer; `bias` and `std` as in `Conv`."""

    units: int
    bias: float = 0.0
    std: float = 0.01


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation over N, H, W, with Keras' constants; `momentum` is the weight of the new batch (Keras: 1 - 0.99)."""

    epsilon: float = 1e-3
    momentum: float = 0.01


@dataclass(frozen=True)
class LocalNorm:
    """Local response normalisation: x / (k + alpha * (sum of squares over `size` channels)) ** beta.

    `alpha` multiplies the sum (paper, section 3.3), not the mean as in PyTorch and Caffe. The window stays inside a tower,
    unless `across` is set.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    across: bool = False


@dataclass(frozen=True)
class MapNorm:
    """`LocalNorm` over `size` x `size` pixels of the same map (`type=rnorm` in the 2012 source; k is its default)."""

    size: int = 5
    alpha: float = 0.001 / 25
    beta: float = 0.75
    k: float = 1.0


class Act:
    """The variant's activation."""


class Norm:
    """The variant's normalisation, if it has one."""


class Pool:
    """The variant's max pooling."""


class Drop:
    """The variant's dropout."""


class Flatten:
    """Flatten the maps to a vector, in the variant's order of axes."""


Layer = Conv | Dense | Act | Norm | MapNorm | Pool | Drop | Flatten
Normalisation = BatchNorm | LocalNorm | None


@dataclass(frozen=True)
class Variant:
    """An architecture, as its `source` defines it.

    `input_size` is in pixels, for square RGB images. `init` is the rule for initial weights: `keras` (Glorot uniform, Keras'
    default), `normal` (the layers' `std`; paper, section 5), `he` or `torch` (PyTorch's default). `flatten` is the order in
    which the dense layers read the maps. `dropout_scales` is the phase in which dropout rescales its outputs: in training, as
    usual today, or in testing, by 1 - `dropout`, as in 2012. With `ceil_mode`, a pooling window that reaches over the right or
    the lower border counts too.
    """

    name: str
    source: str
    input_size: int
    classes: int
    layers: tuple[Layer, ...]
    init: Literal["keras", "normal", "he", "torch"]
    norm: Normalisation = None
    activation: Literal["relu", "tanh"] = "relu"
    pool: tuple[int, int] = (3, 2)  # window and stride: windows overlap (paper, section 3.4)
    ceil_mode: bool = False
    dropout: float = 0.5
    dropout_scales: Literal["training", "testing"] = "training"
    towers: int = 1
    flatten: Literal["HWC", "CHW"] = "HWC"

    def scaled(self, channels: int, width: float) -> int:
        """Return `channels` times `width`, rounded so that all towers get the same number, at least 1."""
        return max(1, round(channels * width / self.towers)) * self.towers


CAFFE_NORM = LocalNorm(alpha=1e-4 / 5, k=1.0, across=True)  # lrn_param: local_size 5, alpha 0.0001, beta 0.75

# Tutorials 000 and 003.
NORM_AFTER_EACH: tuple[Layer, ...] = (
    *(Conv(96, 11, stride=4), Act(), Norm(), Pool()),
    *(Conv(256, 5, padding=2), Act(), Norm(), Pool()),
    *(Conv(384, 3, padding=1), Act(), Norm()),
    *(Conv(384, 3, padding=1), Act(), Norm()),
    *(Conv(256, 3, padding=1), Act(), Norm(), Pool()),
)
CLASSIFIER: tuple[Layer, ...] = (Flatten(), Dense(4096), Act(), Drop(), Dense(4096), Act(), Drop())

ROWS = (
    Variant(
        "annotated",
        "tutorial 000 (Keras, mini-ImageNet of 16 classes): batch normalisation after each convolution's ReLU, input 224. The "
        "text computes its shapes for 227, as in the paper; its code takes 224 without padding: 54, 26, 12, 5",
        input_size=224,
        classes=16,
        init="keras",
        norm=BatchNorm(),
        layers=(*NORM_AFTER_EACH, *CLASSIFIER),
    ),
    Variant(
        "cats-dogs",
        "tutorial 001 (Keras, cats and dogs): one batch normalisation, after pool 2. The table in the same text has response "
        "normalisation after both pools instead: that is the variant `table`",
        input_size=227,
        classes=2,
        init="keras",
        norm=BatchNorm(),
        layers=(
            *(Conv(96, 11, stride=4), Act(), Pool()),
            *(Conv(256, 5, padding=2), Act(), Pool(), Norm()),
            *(Conv(384, 3, padding=1), Act()),
            *(Conv(384, 3, padding=1), Act()),
            *(Conv(256, 3, padding=1), Act(), Pool()),
            *CLASSIFIER,
        ),
    ),
    Variant(
        "cifar10-1x1",
        "tutorial 002 (Keras, CIFAR-10): its conv4 and conv5 have 1x1 kernels, where all others have 3x3",
        input_size=227,
        classes=10,
        init="keras",
        norm=BatchNorm(),
        layers=(
            *(Conv(96, 11, stride=4), Act(), Norm(), Pool()),
            *(Conv(256, 5, padding=2), Act(), Norm(), Pool()),
            *(Conv(384, 3, padding=1), Act(), Norm()),
            *(Conv(384, 1), Act(), Norm()),
            *(Conv(256, 1), Act(), Norm(), Pool()),
            *CLASSIFIER,
        ),
    ),
    Variant(
        "cifar10",
        "tutorial 003 (Keras, CIFAR-10): batch normalisation after each convolution's ReLU. Its code has 3x3 kernels in conv4 "
        "and conv5; the summary that the text prints is that of the 1x1 network of tutorial 002",
        input_size=227,
        classes=10,
        init="keras",
        norm=BatchNorm(),
        layers=(*NORM_AFTER_EACH, *CLASSIFIER),
    ),
    Variant(
        "table",
        "tutorial 001, its table of layers: response normalisation after the first two pools, one tower. It gives no "
        "constants: this variant uses those of the paper, and Keras' initial weights",
        input_size=227,
        classes=1000,
        init="keras",
        norm=LocalNorm(),
        layers=(
            *(Conv(96, 11, stride=4), Act(), Pool(), Norm()),
            *(Conv(256, 5, padding=2), Act(), Pool(), Norm()),
            *(Conv(384, 3, padding=1), Act()),
            *(Conv(384, 3, padding=1), Act()),
            *(Conv(256, 3, padding=1), Act(), Pool()),
            *CLASSIFIER,
        ),
    ),
    Variant(
        "scratch",
        "tutorial 000, the part in NumPy: ReLU, then response norm, then pool; convolutions without bias. Its norm spans 5 "
        "channels in all, though the text calls that the radius. The text draws kernels from N(0, 1) for a single forward "
        "pass; this variant initializes them like the dense layers, so that it can learn",
        input_size=227,
        classes=1000,
        init="he",
        norm=LocalNorm(k=1.0),
        layers=(
            *(Conv(96, 11, stride=4, bias=None), Act(), Norm(), Pool()),
            *(Conv(256, 5, padding=2, bias=None), Act(), Norm(), Pool()),
            *(Conv(384, 3, padding=1, bias=None), Act()),
            *(Conv(384, 3, padding=1, bias=None), Act()),
            *(Conv(256, 3, padding=1, bias=None), Act(), Pool()),
            *CLASSIFIER,
        ),
    ),
    Variant(
        "paper",
        "Krizhevsky, Sutskever, Hinton 2012, the text: two towers that meet in conv3 and in the dense layers. Its input of 224 "
        "gives 55x55 maps only with padding; this variant takes 227 without padding, as is usual",
        input_size=227,
        classes=1000,
        init="normal",
        norm=LocalNorm(),
        towers=2,
        flatten="CHW",
        dropout_scales="testing",
        layers=(
            *(Conv(96, 11, stride=4), Act(), Norm(), Pool()),
            *(Conv(256, 5, padding=2, grouped=True, bias=1.0), Act(), Norm(), Pool()),
            *(Conv(384, 3, padding=1), Act()),
            *(Conv(384, 3, padding=1, grouped=True, bias=1.0), Act()),
            *(Conv(256, 3, padding=1, grouped=True, bias=1.0), Act(), Pool()),
            *(Flatten(), Dense(4096, bias=1.0), Act(), Drop(), Dense(4096, bias=1.0), Act(), Drop()),
        ),
    ),
    Variant(
        "code2012",
        "the released 2012 source, layers-145.cfg. Unlike the text: layer 1 is conv, norm, pool, ReLU; alpha is divided by 5; "
        "layer 2 is normalised within maps too; conv3 to conv5 have std 0.03; 224 pixels, and sizes round up",
        input_size=224,
        classes=1000,
        init="normal",
        norm=LocalNorm(alpha=1e-4 / 5),
        towers=2,
        flatten="CHW",
        dropout_scales="testing",
        layers=(
            *(Conv(96, 11, stride=4, padding_after=3), Norm(), Pool(), Act()),
            *(Conv(256, 5, padding=2, grouped=True, bias=1.0), Act(), Norm(), MapNorm(), Pool()),
            *(Conv(384, 3, padding=1, std=0.03), Act()),
            *(Conv(384, 3, padding=1, grouped=True, bias=1.0, std=0.03), Act()),
            *(Conv(256, 3, padding=1, grouped=True, bias=1.0, std=0.03), Pool(), Act()),
            *(Flatten(), Dense(4096, bias=1.0), Act(), Drop(), Dense(4096, bias=1.0), Act(), Drop()),
        ),
    ),
    Variant(
        "caffenet",
        "Caffe's reference network: pool before norm; two groups in conv2, conv4 and conv5, but a norm across all channels, "
        "with k 1 and alpha divided by 5; dense layers have std 0.005. Pooling rounds sizes up, which changes none at 227",
        input_size=227,
        classes=1000,
        init="normal",
        norm=CAFFE_NORM,
        towers=2,
        flatten="CHW",
        ceil_mode=True,
        layers=(
            *(Conv(96, 11, stride=4), Act(), Pool(), Norm()),
            *(Conv(256, 5, padding=2, grouped=True, bias=1.0), Act(), Pool(), Norm()),
            *(Conv(384, 3, padding=1), Act()),
            *(Conv(384, 3, padding=1, grouped=True, bias=1.0), Act()),
            *(Conv(256, 3, padding=1, grouped=True, bias=1.0), Act(), Pool()),
            *(Flatten(), Dense(4096, bias=1.0, std=0.005), Act(), Drop()),
            *(Dense(4096, bias=1.0, std=0.005), Act(), Drop()),
        ),
    ),
    Variant(
        "bvlc",
        "BVLC AlexNet, Caffe's replication of the paper: norm before pool; groups and constants as in `caffenet`, but biases "
        "start at 0.1, as at 1 the loss stayed flat (models/bvlc_alexnet/readme.md)",
        input_size=227,
        classes=1000,
        init="normal",
        norm=CAFFE_NORM,
        towers=2,
        flatten="CHW",
        ceil_mode=True,
        layers=(
            *(Conv(96, 11, stride=4), Act(), Norm(), Pool()),
            *(Conv(256, 5, padding=2, grouped=True, bias=0.1), Act(), Norm(), Pool()),
            *(Conv(384, 3, padding=1), Act()),
            *(Conv(384, 3, padding=1, grouped=True, bias=0.1), Act()),
            *(Conv(256, 3, padding=1, grouped=True, bias=0.1), Act(), Pool()),
            *(Flatten(), Dense(4096, bias=0.1, std=0.005), Act(), Drop()),
            *(Dense(4096, bias=0.1, std=0.005), Act(), Drop()),
        ),
    ),
    Variant(
        "owt",
        "torchvision's network, after Krizhevsky's 'One weird trick' (2014): one tower, no normalisation, dropout first",
        input_size=224,
        classes=1000,
        init="torch",
        flatten="CHW",
        layers=(
            *(Conv(64, 11, stride=4, padding=2), Act(), Pool()),
            *(Conv(192, 5, padding=2), Act(), Pool()),
            *(Conv(384, 3, padding=1), Act()),
            *(Conv(256, 3, padding=1), Act()),
            *(Conv(256, 3, padding=1), Act(), Pool()),
            *(Flatten(), Drop(), Dense(4096), Act(), Drop(), Dense(4096), Act()),
        ),
    ),
    Variant(
        "four-layer",
        "Krizhevsky, Sutskever, Hinton 2012, figure 1: the four-layer network that learns CIFAR-10 with ReLU and with tanh. "
        "The text gives no sizes: this variant has those of cuda-convnet's layers-18pct.cfg, but with max pooling in place of "
        "two mean poolings, no normalisation, and Keras' initial weights, which suit both activations",
        input_size=32,
        classes=10,
        init="keras",
        layers=(
            *(Conv(32, 5, padding=2), Act(), Pool()),
            *(Conv(32, 5, padding=2), Act(), Pool()),
            *(Conv(64, 5, padding=2), Act(), Pool()),
            Flatten(),
        ),
    ),
)

VARIANTS = {row.name: row for row in ROWS}

# Values of `model.norm` in a recipe, which replace the variant's norms where they are. `local` has them after the first two
# convolutions alone (paper, section 3.3); `local-each` has them all, as `local` did in earlier versions.
NORMS: dict[str, Normalisation] = {"batch": BatchNorm(), "local": LocalNorm(), "local-each": LocalNorm(), "none": None}


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0


# Fields that a recipe may change: a check of the value, and the allowed values in words.
CHANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "activation": (lambda value: value in ("relu", "tanh"), "'relu' or 'tanh'"),
    "norm": (lambda value: value in list(NORMS), "'batch', 'local', 'local-each' or 'none'"),
    "batch_norm_momentum": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "pool": (lambda value: len(value) == 2 and all(map(_positive, value)), "two whole numbers, window and stride in pixels"),
    "dropout": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "towers": (_positive, "1, 2 or more"),
    "dense_units": (_positive, "1, 2 or more"),
}


def variant(row: str | Variant, overrides: Mapping[str, Any] | None = None) -> Variant:
    """Return a variant, given by name or as an object, with `overrides` of the fields in `CHANGES`, as in a recipe."""
    if isinstance(row, str):
        if row not in VARIANTS:
            raise VariantError(f"no variant {row!r}: {suggest(row, VARIANTS)}")
        row = VARIANTS[row]
    changes = dict(overrides or {})
    for field, value in changes.items():
        if field not in CHANGES:
            raise VariantError(f"no field {field!r} to change in a variant: {suggest(field, CHANGES)}")
        is_valid, expected = CHANGES[field]
        try:
            valid = is_valid(value)
        except TypeError:  # not a number, or not two of them
            valid = False
        if not valid:
            raise VariantError(f"{field} is {value!r}, but should be {expected}")
    norm = row.norm
    if "norm" in changes:
        kind = changes.pop("norm")
        norm, row = NORMS[kind], replace(row, layers=_with_norm(row.layers, kind))
    momentum = changes.pop("batch_norm_momentum", None)
    if momentum is not None and isinstance(norm, BatchNorm):
        norm = replace(norm, momentum=momentum)
    if "pool" in changes:
        changes["pool"] = tuple(changes["pool"])  # a list if it comes from JSON
    if "dense_units" in changes:
        units = changes.pop("dense_units")
        dense = (replace(layer, units=units) if isinstance(layer, Dense) else layer for layer in row.layers)
        row = replace(row, layers=tuple(dense))
    return replace(row, norm=norm, **changes)


def check_effect(name: str, overrides: Mapping[str, Any]) -> None:
    """Raise a VariantError if something is asked of a variant that has no place for it."""
    layers = {type(layer) for layer in VARIANTS[name].layers}
    if overrides.get("norm", "none") != "none" and Norm not in layers:
        raise VariantError(f"model.norm has no effect: the variant {name!r} has no normalisation to replace")
    if overrides.get("dropout") and Drop not in layers:
        raise VariantError(f"model.dropout has no effect: the variant {name!r} has no dropout to change")
    if overrides.get("dense_units") and Dense not in layers:
        raise VariantError(f"model.dense_units has no effect: the variant {name!r} has no dense layers but the head")


def _with_norm(layers: tuple[Layer, ...], kind: str) -> tuple[Layer, ...]:
    """Return the layers without norms within maps, and with `local` without norms after the third convolution."""
    kept, convolutions = list[Layer](), 0
    for layer in layers:
        convolutions += isinstance(layer, Conv)
        late = kind == "local" and isinstance(layer, Norm) and convolutions > 2
        if not late and not isinstance(layer, MapNorm):
            kept.append(layer)
    return tuple(kept)
