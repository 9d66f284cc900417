"""Every architecture, one row each.

A row lists its layers in order, as the table in the text that it comes from does. What a text decides once for the whole
network (activation, kind of normalisation, pooling window, dropout, towers, first weights) stands once in the row, and the
layers `Act`, `Norm`, `Pool` and `Drop` take it from there; so a recipe can change one such field and nothing else.
The last layer, `fc8`, is not in the list: it is the head, with one output a class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from alexnet.errors import VariantError, suggest


@dataclass(frozen=True)
class Conv:
    """Convolution; `grouped` means that each tower sees only its own channels.

    `bias` is its first value (None: no bias), `std` that of the first weights where the row's `init` is `normal`.
    `padding` zeros stand on every side, `padding_after` more on the right and below.
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
    """Batch normalisation over N, H, W, with Keras' constants. `momentum` is the share of the new batch (Keras' 0.99)."""

    epsilon: float = 1e-3
    momentum: float = 0.01


@dataclass(frozen=True)
class LocalNorm:
    """Local response normalisation: x / (k + alpha * (sum of squares over `size` channels)) ** beta.

    `alpha` multiplies the sum itself (paper, section 3.3), not the mean as in PyTorch and Caffe. The window stays inside a
    tower, unless it goes `across` them.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    across: bool = False


@dataclass(frozen=True)
class MapNorm:
    """As `LocalNorm`, but over `size` x `size` pixels of the same map (`type=rnorm` in the 2012 source; k is its default)."""

    size: int = 5
    alpha: float = 0.001 / 25
    beta: float = 0.75
    k: float = 1.0


class Act:
    """The row's activation."""


class Norm:
    """The row's normalisation, or nothing where the row has none."""


class Pool:
    """The row's max pooling."""


class Drop:
    """The row's dropout."""


class Flatten:
    """Feature maps to a vector, in the row's order of axes."""


Layer = Conv | Dense | Act | Norm | MapNorm | Pool | Drop | Flatten


@dataclass(frozen=True)
class Variant:
    """An architecture: the facts of one text.

    `input_size` is in pixels, square, RGB. `init` names the rule for the first weights: `keras` (Glorot uniform, as Keras
    does by default), `normal` (the layers' deviations; paper, section 5), `he`, or `torch` (PyTorch's default).
    `flatten` is the order in which the dense layers read the maps. `dropout_scales` says when dropout makes up for the units
    that are missing: in training, as all do today, or as in 2012 afterwards, by multiplying all outputs by 1 - `dropout`.
    """

    name: str
    source: str
    input_size: int
    classes: int
    layers: tuple[Layer, ...]
    init: Literal["keras", "normal", "he", "torch"]
    norm: BatchNorm | LocalNorm | None = None
    activation: Literal["relu", "tanh"] = "relu"
    pool: tuple[int, int] = (3, 2)  # window, stride: they overlap (paper, section 3.4)
    dropout: float = 0.5
    dropout_scales: Literal["training", "testing"] = "training"
    towers: int = 1
    flatten: Literal["HWC", "CHW"] = "HWC"

    def scaled(self, channels: int, width: float) -> int:
        """Return `channels` times `width`, at least one channel a tower and the same number in each."""
        return max(1, round(channels * width / self.towers)) * self.towers


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
        "text works its shapes out for 227, the paper's reading; its code takes 224 without padding: 54, 26, 12, 5",
        input_size=224,
        classes=16,
        init="keras",
        norm=BatchNorm(),
        layers=(*NORM_AFTER_EACH, *CLASSIFIER),
    ),
    Variant(
        "cats-dogs",
        "tutorial 001 (Keras, cats and dogs): one batch normalisation, after pool 2. The table in the same text has response "
        "normalisation instead, and after both pools: that is the variant `table`",
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
        "constants: those of the paper are taken, and Keras' first weights",
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
        "tutorial 000, the part in NumPy: ReLU, then response norm, then pool; convolutions without bias. Its norm takes 5 "
        "channels in all, though the text calls that the radius. The text draws kernels from N(0, 1) and runs them forward "
        "once; so that it also learns, the weights start by the dense layers' rule",
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
        "gives 55x55 maps only with padding; the usual reading, 227 without, is taken",
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
        "the released 2012 source, layers-145.cfg. Unlike the text: layer 1 goes conv, norm, pool, ReLU; alpha divided by 5; "
        "layer 2 is normalised within maps too; conv3 to conv5 start at 0.03; 224 pixels, and sizes round up",
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
        "Caffe's reference network: pool before norm; two groups in conv2, conv4 and conv5, but a norm that sees all channels, "
        "with k 1 and alpha divided by 5; dense layers start at 0.005",
        input_size=227,
        classes=1000,
        init="normal",
        norm=LocalNorm(alpha=1e-4 / 5, k=1.0, across=True),
        towers=2,
        flatten="CHW",
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
        "The text gives no sizes: those of cuda-convnet's layers-18pct.cfg are taken, all pools by maximum (two of its three "
        "take the mean), without normalisation, and Keras' first weights, which suit both activations",
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

# What a recipe may write for a row's `norm`.
NORMS: dict[str, BatchNorm | LocalNorm | None] = {"batch": BatchNorm(), "local": LocalNorm(), "none": None}


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0


# The fields of a row that may be changed: whether a value will do, and which do.
CHANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "activation": (lambda value: value in ("relu", "tanh"), "'relu' or 'tanh'"),
    "norm": (lambda value: value in list(NORMS), "'batch', 'local' or 'none'"),
    "batch_norm_momentum": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "pool": (lambda value: len(value) == 2 and all(map(_positive, value)), "two whole numbers, window and stride in pixels"),
    "dropout": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "towers": (_positive, "1, 2 or more"),
}


def variant(row: str | Variant, overrides: Mapping[str, Any] | None = None) -> Variant:
    """Return a row, by name or as it is, with `overrides` of its fields as a recipe writes them: those of `CHANGES`.

    Raises:
        VariantError: no such row, no such field, or a value that it cannot have.
    """
    if isinstance(row, str):
        if row not in VARIANTS:
            raise VariantError(f"no variant {row!r}: {suggest(row, VARIANTS)}")
        row = VARIANTS[row]
    changes = dict(overrides or {})
    for field, value in changes.items():
        _check(field, value)
    norm = row.norm
    if "norm" in changes:
        norm = NORMS[changes.pop("norm")]
        row = replace(row, layers=tuple(layer for layer in row.layers if not isinstance(layer, MapNorm)))
    momentum = changes.pop("batch_norm_momentum", None)
    if momentum is not None and isinstance(norm, BatchNorm):
        norm = replace(norm, momentum=momentum)
    if "pool" in changes:
        changes["pool"] = tuple(changes["pool"])  # a list, where it comes from JSON
    return replace(row, norm=norm, **changes)


def _check(field: str, value: Any) -> None:
    if field not in CHANGES:
        raise VariantError(f"no field {field!r} to change in a variant: {suggest(field, CHANGES)}")
    good, words = CHANGES[field]
    try:
        fits = good(value)
    except TypeError:  # not a number, or not two of them
        fits = False
    if not fits:
        raise VariantError(f"{field} is {value!r}: it may be {words}")
