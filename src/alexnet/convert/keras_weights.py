"""Load Keras weights into a network. All shapes are compared before anything is changed."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.data.decode_pool import decode_one
from alexnet.errors import ImageError, WeightsError, counted
from alexnet.network.alexnet import AlexNet
from alexnet.network.layers import FlattenMaps
from alexnet.network.variants import ROWS, Variant

CONVOLUTION, DENSE, NORM = ("convolution", "dense layer", "batch normalisation")
AXES = {4: CONVOLUTION, 2: DENSE, 1: NORM}  # of a layer's first array
PARTS = {CONVOLUTION: ("kernel", "bias"), DENSE: ("kernel", "bias"), NORM: ("gamma", "beta", "moving mean", "moving variance")}


class StoredLayer(NamedTuple):
    """A layer of a Keras file: its name there and its arrays in Keras' order, float32."""

    name: str
    arrays: tuple[NDArray[np.float32], ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the arrays, as Keras has them."""
        return tuple(array.shape for array in self.arrays)

    @property
    def kind(self) -> str | None:
        """The kind of layer, a value of `AXES`; None if an AlexNet has no such layer."""
        return AXES.get(len(self.shapes[0]))


def read_layers(path: Path) -> list[StoredLayer]:
    """Return the layers of a Keras file that have weights, in the order of the model, read by a decoding process."""
    if find_spec("h5py") is None:
        raise WeightsError("reading Keras files needs h5py: pip install h5py")
    if not path.is_file():
        hint = "is a folder; save the model as one file (model.save('model.keras'))" if path.is_dir() else "no such file"
        raise WeightsError(f"{path}: {hint}")
    answer = decode_one("alexnet.convert.keras_hdf5:layers", path, {})
    refused = str(answer) if isinstance(answer, ImageError) else answer.facts.get("refused")
    if isinstance(answer, ImageError) or refused:
        raise WeightsError(f"{path}: {refused}")
    layers = answer.facts["layers"]
    ends = np.cumsum([math.prod(shape) for _, shapes in layers for shape in shapes])
    arrays = iter(np.split(np.frombuffer(answer.body, np.float32), ends))
    return [StoredLayer(name, tuple(next(arrays).reshape(shape) for shape in shapes)) for name, shapes in layers]


class Slot(NamedTuple):
    """A layer of our network that has weights: `views` of its tensors with Keras' axes and order (`PARTS`)."""

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
    maps: FlattenMaps | None = None  # flattened for the next dense layer
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

    The file is a `.keras`, a `.weights.h5` or an older `.h5`, of a whole model or of weights alone, in float16, float32 or
    float64. Its convolutions, dense layers and batch normalisations are each matched in order; an optimizer's state is ignored.
    A network on the device `meta` takes memory only when the file fits.
    """
    layers = read_layers(path)
    if problem := _difference(layers, network):
        raise WeightsError(f"{path}: {problem}; {_suggestion(layers, network, *_head(layers, path))}")
    if network.head.weight.is_meta:
        network.allocate(torch.get_default_device())
        for norm in (layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.reset_running_stats()  # including the number of batches seen
    remaining = _by_kind(layers)
    with torch.no_grad():
        for slot in slots(network):
            for view, array in zip(slot.views, remaining[slot.kind].pop(0).arrays, strict=True):
                view.copy_(torch.tensor(array).view(view.shape))


def keras_classes(path: Path) -> int:
    """Return the number of outputs of the last dense layer in a Keras file."""
    return _head(read_layers(path), path)[1]


def _head(layers: Sequence[StoredLayer], path: Path) -> tuple[int, int]:
    """Return the inputs and the outputs of the last dense layer."""
    dense = [layer for layer in layers if layer.kind == DENSE]
    if not dense:
        raise WeightsError(f"{path}: it has no dense layer, so it is not an AlexNet")
    inputs, outputs = dense[-1].shapes[0]
    return inputs, outputs


def _by_kind(layers: Sequence[StoredLayer]) -> dict[str, list[StoredLayer]]:
    return {kind: [layer for layer in layers if layer.kind == kind] for kind in PARTS}


def _difference(layers: Sequence[StoredLayer], network: AlexNet) -> str | None:
    """Return the first mismatch between the layers of a file and `network`, if any."""
    ours = f"the variant {network.row.name!r}"
    remaining = _by_kind(layers)
    for slot in slots(network):
        if not remaining[slot.kind]:
            return f"it has no {slot.kind} for {slot.name} of {ours}"
        layer = remaining[slot.kind].pop(0)
        parts = PARTS[slot.kind][: len(slot.views)]
        if len(layer.shapes) != len(parts):
            return f"its layer {layer.name!r} holds {_texts(layer)}, but {slot.name} of {ours} {', '.join(parts)}"
        for part, has, expected in zip(parts, layer.shapes, slot.shapes, strict=True):
            if has != expected:
                its = f"the {part} of its layer {layer.name!r} is {_text(has)}"
                return f"{its}, but {slot.name} of {ours} needs {_text(expected)}"
    extra = [*(layer for layer in layers if layer.kind is None), *(layer for kind in remaining.values() for layer in kind)]
    if extra:
        layer = extra[0]
        return f"its layer {layer.name!r} ({_texts(layer)}) does not fit anywhere in {ours}"
    return None


def _suggestion(layers: Sequence[StoredLayer], network: AlexNet, inputs: int, classes: int) -> str:
    """Suggest the classes, the width or the variant that fits a file; its last layer has this many `inputs` and `classes`."""

    def width(row: Variant, units: int) -> float:
        with torch.device("meta"):  # takes no memory
            return units / AlexNet(row).head.in_features

    def fits(row: Variant) -> bool:
        if width(row, inputs) >= 100 or classes >= 1e6:  # sizes of a damaged file may be too large even for `meta`
            return False
        with torch.device("meta"):
            return not _difference(layers, AlexNet(row, classes, width=width(row, inputs)))

    rows = [network.row] if fits(network.row) else [row for row in ROWS if fits(row)]
    if not rows:
        return "it fits no variant of `alexnet model list`"
    names = "" if rows[0] is network.row else " the variant " + " or ".join(repr(row.name) for row in rows)
    needed = width(rows[0], inputs)
    at_width = "" if needed == width(network.row, network.head.in_features) else f" at model.width={needed:g}"
    if names or at_width:
        return f"it fits{names}{at_width}"
    return f"it has {counted(classes, 'class')}, this network {network.head.out_features}: name its classes with --classes"


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _texts(layer: StoredLayer) -> str:
    return ", ".join(map(_text, layer.shapes))
