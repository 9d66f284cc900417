"""Summarize a network: the output shape, parameters and size formula of each layer."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from alexnet.errors import counted
from alexnet.network.alexnet import AlexNet
from alexnet.network.layers import FlattenMaps
from alexnet.network.lrn import LocalMapNorm, LocalResponseNorm
from alexnet.network.variants import Variant

FLOAT = 4  # bytes of a float32

KINDS: dict[type[nn.Module], str] = {
    nn.ZeroPad2d: "zero padding",
    nn.Conv2d: "convolution",
    nn.MaxPool2d: "max pooling",
    nn.BatchNorm2d: "batch normalisation",
    LocalResponseNorm: "local response normalisation",
    LocalMapNorm: "map normalisation",
    nn.ReLU: "ReLU",
    nn.Tanh: "tanh",
    nn.Dropout: "dropout",
    FlattenMaps: "flatten",
    nn.Linear: "dense",
}


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels of the image on which the values of a layer depend, alike for rows and columns.

    The value at position i depends on `size` pixels from `i * stride - padding` on. Outside the image, and where padding takes
    the place of values of an earlier layer, they are zeros.
    """

    size: int = 1
    stride: int = 1
    padding: int = 0

    @property
    def offset(self) -> float:
        """The centre of the field of the value at position 0, in pixels from the centre of the first pixel."""
        return (self.size - 1) / 2 - self.padding

    def through(self, window: int, stride: int, padding: int) -> "ReceptiveField":
        """Return the receptive field behind a layer with this window."""
        reach = (window - 1) * self.stride
        return ReceptiveField(self.size + reach, self.stride * stride, self.padding + padding * self.stride)

    def covers(self, side: int) -> bool:
        """Return whether the value at position 0 depends on all pixels of an image of `side` x `side`."""
        return self.padding >= 0 and self.size - self.padding >= side

    def to_json(self) -> dict[str, float]:
        """Return all numbers."""
        return {"size": self.size, "stride": self.stride, "offset": self.offset, "padding": self.padding}


@dataclass(frozen=True)
class LayerSummary:
    """A layer of the network.

    Attributes:
        name: name of the layer, such as `conv1`.
        kind: type of the layer, such as `convolution`.
        output: shape of the output: C, H, W of maps, or N of a vector.
        parameters: number of weights, biases, scales, shifts and moving statistics.
        formula: calculation of the output's height and width, of a flat vector's length, or of a dense layer's parameters; ""
            if the layer keeps the shape.
        window: size in pixels, 0 if there is none.
        stride: stride in pixels, 0 if there is none.
        padding: padding in pixels, 0 if there is none.
        groups: number of groups of channels that are processed separately; 1 if every output depends on all channels, None if
            each depends on one.
        field: receptive field; that of a vector is everything its maps depend on.
        torchvision: name of the layer in torchvision's AlexNet, such as `features.0`; None if the variant has other layers.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int = 0
    formula: str = ""
    window: int = 0
    stride: int = 0
    padding: int = 0
    groups: int | None = None
    field: ReceptiveField = ReceptiveField()
    torchvision: str | None = None


@dataclass(frozen=True)
class Summary:
    """A network, layer by layer.

    Attributes:
        variant: name of the variant.
        input: shape of the input: C, H, W, in pixels.
        towers: number of towers; layers with as many groups process each tower separately.
        parameters: number of parameters, with the moving means and variances of batch normalisation, as Keras counts them.
        trainable: number of parameters without those.
        layers: all layers, in order; the head is the last.
    """

    variant: str
    input: tuple[int, int, int]
    towers: int
    parameters: int
    trainable: int
    layers: tuple[LayerSummary, ...]

    @property
    def activations(self) -> int:
        """Number of values of an image and of all layers' outputs for it."""
        return math.prod(self.input) + sum(math.prod(layer.output) for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Return the output of `alexnet model summary --json`; `bytes` are those of float32."""
        keys = ("name", "kind", "output", "parameters", "formula", "torchvision")
        layers = [
            {**{key: getattr(layer, key) for key in keys}, "receptive_field": layer.field.to_json()} for layer in self.layers
        ]
        sizes = {key: FLOAT * getattr(self, key) for key in ("parameters", "trainable", "activations")}
        counts = {key: getattr(self, key) for key in ("variant", "input", "parameters", "trainable")}
        return {**counts, "bytes": sizes, "layers": layers}

    def table(self) -> str:
        """Return the summary as text: the input, a table of the layers, and the totals."""
        rows = [("layer", "torchvision", "kind", "groups", "output", "sees", "parameters", "worked out")]
        for layer in self.layers:
            groups, theirs = str(layer.groups) if (layer.groups or 1) > 1 else "", layer.torchvision or ""
            sees = "all" if layer.field.covers(self.input[1]) else str(layer.field.size)
            counts = (sizes(layer.output), sees, f"{layer.parameters:,}")
            rows.append((layer.name, theirs, layer.kind, groups, *counts, layer.formula))
        aligned = []
        for column in zip(*rows, strict=True):
            if column[0] not in ("torchvision", "groups") or any(column[1:]):
                align, width = ">" if column[0] in ("groups", "sees", "parameters") else "<", max(map(len, column))
                aligned.append([f"{cell:{align}{width}}" for cell in column])
        lines = ["  ".join(cells).rstrip() for cells in zip(*aligned, strict=True)]
        towers = f", {self.towers} towers: a layer in groups keeps its channels apart" if self.towers > 1 else ""
        head = f"{self.variant}: input {sizes(self.input)}, {counted(self.layers[-1].output[0], 'class')}{towers}"
        fixed = self.parameters - self.trainable
        totals = [
            ("parameters", self.parameters, "in float32"),
            ("trainable", self.trainable, ""),
            ("not trainable", fixed, "moving means and variances" if fixed else ""),
            ("activations", self.activations, "of one image: it and the outputs of all layers"),
        ]
        width = max(len(f"{count:,}") for _, count, _ in totals)
        footer = [f"{name:13}  {count:{width},}  {_memory(count):>10}  {note}".rstrip() for name, count, note in totals]
        return "\n".join([head, "", *lines, "", *footer])


def summarize(row: str | Variant, classes: int | None = None) -> Summary:
    """Return the summary of a variant at its own input size and full width.

    Shapes come from a forward pass on the meta device, which needs no memory or computation.

    Args:
        row: name of a variant, or a `Variant` of your own.
        classes: number of outputs; None for the variant's.

    Raises:
        VariantError: no such variant.
    """
    with torch.device("meta"):
        network = AlexNet(row, classes).eval()
        size = network.row.input_size
        _, outputs = network.activations(torch.empty(1, 3, size, size), network.layer_names)
    layers: list[LayerSummary] = []
    before: tuple[int, ...] = (3, size, size)
    field = ReceptiveField()
    theirs = {name: their for their, name in network.torchvision_names.items()}
    for name, module in network.layers.items():
        after = tuple(outputs[name].shape[1:])
        layer = _layer(name, module, before, after)
        field = _field(module, layer, before, field)
        layers.append(replace(layer, field=field, torchvision=theirs.get(name)))
        before = after
    parameters = sum(layer.parameters for layer in layers)
    trainable = sum(weights.numel() for weights in network.parameters())
    return Summary(network.row.name, (3, size, size), network.row.towers, parameters, trainable, tuple(layers))


def sizes(shape: tuple[int, ...], sign: str = " x ") -> str:
    """Format C, H, W as `H x W x C`, the order in the paper and the tutorials, and N as `N`."""
    return sign.join(map(str, (*shape[1:], shape[0])))


def _memory(count: int) -> str:
    """Return the size of `count` float32 values; Keras prints the same numbers as MB and KB."""
    size = FLOAT * count
    return f"{size / 2**20:,.2f} MiB" if size >= 2**20 else f"{size / 2**10:.2f} KiB"


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module, with moving means and variances, as Keras counts them."""
    return sum(value.numel() for value in module.state_dict().values() if value.is_floating_point())  # not the batch counter


def _layer(name: str, module: nn.Module, before: tuple[int, ...], after: tuple[int, ...]) -> LayerSummary:
    kind = next(kind for layer, kind in KINDS.items() if isinstance(module, layer))
    parameters = count_parameters(module)
    window = stride = padding = 0
    groups = None
    formula = ""
    match module:
        case nn.Conv2d() | nn.MaxPool2d():
            window, stride, padding = _first(module.kernel_size), _first(module.stride), _first(module.padding)
            groups = module.groups if isinstance(module, nn.Conv2d) else None
            exact = (before[1] + 2 * padding - window) / stride + 1
            rounded = "" if exact == after[1] else f" -> {after[1]}"
            formula = f"({before[1]} + 2*{padding} - {window}) / {stride} + 1 = {exact:g}{rounded}"
        case nn.ZeroPad2d():
            formula = f"{before[1]} + {sum(module.padding[2:])} = {after[1]}"  # left, right, top, bottom
        case FlattenMaps():
            formula = f"{sizes(before, ' * ')} = {after[0]}"
        case nn.Linear():
            groups = 1
            formula = f"{before[0]} * {after[0]} + {after[0]} = {parameters}"
        case LocalResponseNorm():
            groups = module.towers
        case LocalMapNorm():
            window, stride, padding = module.size, 1, module.size // 2
    return LayerSummary(name, kind, after, parameters, formula, window, stride, padding, groups)


def _field(module: nn.Module, layer: LayerSummary, before: tuple[int, ...], field: ReceptiveField) -> ReceptiveField:
    """Return the receptive field of a layer behind one with `field` whose output has the shape `before`."""
    match module:
        case nn.ZeroPad2d():
            return field.through(1, 1, module.padding[0])
        case FlattenMaps():
            return field.through(before[1], 1, 0)
    return field.through(layer.window, layer.stride, layer.padding) if layer.window else field


def _first(sides: object) -> int:
    """Return the side of a square, which torch stores as an int or (height, width)."""
    first = sides[0] if isinstance(sides, tuple) else sides
    assert isinstance(first, int)
    return first
