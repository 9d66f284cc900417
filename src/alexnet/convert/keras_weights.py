"""Weights that others made, into our networks. Every shape is compared before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from alexnet.convert.keras_files import KINDS, StoredLayer, open_layers
from alexnet.errors import WeightsError
from alexnet.network.alexnet import AlexNet
from alexnet.network.layers import FlattenMaps
from alexnet.network.variants import ROWS, Variant

CONVOLUTION, DENSE, NORM = KINDS.values()
PARTS = {
    CONVOLUTION: ("kernel", "bias"),
    DENSE: ("kernel", "bias"),
    NORM: ("gamma", "beta", "moving mean", "moving variance"),
}


@dataclass(frozen=True, eq=False)
class Slot:
    """A layer of ours that has weights: `views` of its tensors with Keras' axes, in Keras' order (`PARTS`)."""

    name: str
    kind: str
    views: tuple[Tensor, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of Keras' arrays: H W I O, or (in, out) where the view of a dense kernel still has the maps' axes."""
        first, *others = (tuple(view.shape) for view in self.views)
        return ((math.prod(first[:-1]), first[-1]) if self.kind == DENSE else first, *others)


def slots(network: AlexNet) -> list[Slot]:
    """Return the layers of `network` that have weights, in order."""
    found: list[Slot] = []
    maps: FlattenMaps | None = None  # where the next dense layer reads them
    for name, layer in network.layers.items():
        if isinstance(layer, nn.Conv2d):
            views, kind = [layer.weight.permute(2, 3, 1, 0), layer.bias], CONVOLUTION  # O I H W -> H W I O
        elif isinstance(layer, nn.BatchNorm2d):
            views, kind = [layer.weight, layer.bias, layer.running_mean, layer.running_var], NORM
        elif isinstance(layer, nn.Linear):
            views, kind = [_dense_view(layer.weight, maps), layer.bias], DENSE
            maps = None
        else:
            maps = layer if isinstance(layer, FlattenMaps) else maps
            continue
        found.append(Slot(name, kind, tuple(view for view in views if view is not None)))
    return found


def _dense_view(weight: Tensor, maps: FlattenMaps | None) -> Tensor:
    """Turn (out, in) into (in, out); Keras reads maps as H W C, so where ours are read as C H W it becomes H W C out."""
    if maps is None or maps.order == "HWC":
        return weight.t()
    return weight.view(len(weight), -1, maps.grid, maps.grid).permute(2, 3, 1, 0)


def load_keras(path: Path, network: AlexNet) -> None:
    """Copy the weights of a Keras file into `network`, which is unchanged if they do not fit.

    Layers are matched in order, the convolutions, the dense layers and the batch normalisations each with their like. An
    optimizer's state in the file is passed over.

    Args:
        path: `.keras`, `.weights.h5`, or the older `.h5`, of a whole model or of weights alone; float16, float32 or float64.
        network: of the variant, the width and the number of classes that the file was made with. One on the device `meta`
            takes memory only when the file fits.

    Raises:
        WeightsError: the file cannot be read, or is another network's; then the line names a variant that fits, if one does.
    """
    with open_layers(path) as layers:
        _check(layers, network)
        read = {kind: [layer.read() for layer in layers if layer.kind == kind] for kind in PARTS}
    if network.head.weight.is_meta:
        network.to_empty(device=torch.get_default_device())
        for norm in (layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.reset_running_stats()  # the number of batches seen, too
    with torch.no_grad():
        for slot in slots(network):
            for view, array in zip(slot.views, read[slot.kind].pop(0), strict=True):
                view.copy_(torch.from_numpy(array).view(view.shape))


def keras_classes(path: Path) -> int:
    """Return the number of outputs of the last dense layer in a Keras file.

    Raises:
        WeightsError: the file cannot be read or has no dense layer.
    """
    with open_layers(path) as layers:
        return _head(layers)[1]


def _head(layers: Sequence[StoredLayer]) -> tuple[int, int]:
    """Return the inputs and the outputs of the last dense layer."""
    dense = [layer for layer in layers if layer.kind == DENSE]
    if not dense:
        raise WeightsError("there is no dense layer in it, so it is no AlexNet")
    inputs, outputs = dense[-1].shapes[0]
    return inputs, outputs


def _check(layers: Sequence[StoredLayer], network: AlexNet) -> None:
    if found := _difference(layers, network):
        raise WeightsError(f"{found}; {_way_out(layers, network)}")


def _difference(layers: Sequence[StoredLayer], network: AlexNet) -> str | None:
    """Say the first thing that keeps the layers of a file from fitting `network`."""
    ours = f"the variant {network.row.name!r}"
    waiting = {kind: [layer for layer in layers if layer.kind == kind] for kind in PARTS}
    for slot in slots(network):
        if not waiting[slot.kind]:
            return f"there is no {slot.kind} in it for {slot.name} of {ours}"
        layer = waiting[slot.kind].pop(0)
        parts = PARTS[slot.kind][: len(slot.views)]
        if len(layer.shapes) != len(parts):
            return f"its layer {layer.name!r} holds {_texts(layer)}, but {slot.name} of {ours} {', '.join(parts)}"
        for part, has, wanted in zip(parts, layer.shapes, slot.shapes, strict=True):
            if has != wanted:
                its = f"the {part} of its layer {layer.name!r} is {_text(has)}"
                return f"{its}, but {slot.name} of {ours} wants {_text(wanted)}"
    placeless = [*(layer for layer in layers if layer.kind is None), *(layer for kind in waiting.values() for layer in kind)]
    if placeless:
        layer = placeless[0]
        return f"its layer {layer.name!r} ({_texts(layer)}) has no place in {ours}"
    return None


def _way_out(layers: Sequence[StoredLayer], network: AlexNet) -> str:
    """Name the classes, the width or the variant that fits the file."""
    inputs, classes = _head(layers)

    def width(row: Variant, units: int) -> float:
        with torch.device("meta"):  # takes no memory
            return units / AlexNet(row).head.in_features

    def fits(row: Variant) -> bool:
        if width(row, inputs) >= 100 or classes >= 1e6:  # a damaged file may name sizes that not even `meta` can do
            return False
        with torch.device("meta"):
            return not _difference(layers, AlexNet(row, classes, width=width(row, inputs)))

    def at_width(row: Variant) -> str:
        wanted = width(row, inputs)
        return "" if wanted == width(network.row, network.head.in_features) else f" at model.width={wanted:g}"

    if not fits(network.row):
        rows = [row for row in ROWS if fits(row)]
        names = " or ".join(repr(row.name) for row in rows)
        return f"it fits the variant {names}{at_width(rows[0])}" if rows else "it fits no variant of `alexnet model list`"
    if at_width(network.row):
        return f"it fits{at_width(network.row)}"
    return f"it has {classes} classes, this network {network.head.out_features}: name its classes with --classes"


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _texts(layer: StoredLayer) -> str:
    return ", ".join(map(_text, layer.shapes))
