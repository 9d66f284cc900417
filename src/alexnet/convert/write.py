"""Write the weights of a run for other programs: as a state dict for torchvision, and as Keras 3 saves them.

A file is read back with our own reader, and compared, before it gets its name.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from alexnet.convert.keras_weights import CONVOLUTION, DENSE, NORM, load_keras, slots
from alexnet.convert.torchvision import LAYERS, read_torchvision
from alexnet.errors import RunError, WeightsError
from alexnet.files import MADE_BY, ZIP_COMMENT, refuse_overwrite, sha256, write_output
from alexnet.network.alexnet import AlexNet
from alexnet.network.layers import Dropout2012, FlattenMaps
from alexnet.recipe import Preprocessing
from alexnet.run import ModelConfig

KERAS_CLASSES = {CONVOLUTION: "conv2d", DENSE: "dense", NORM: "batch_normalization"}  # as Keras names layers in its files

FITS = {
    "crop": ("scale the centre square to {side} x {side} ({filter})",),
    "stretch": ("scale to {side} x {side} ({filter})",),
    "torchvision": ("scale the shorter side to {side} ({filter})", "cut out the centre {side} x {side}"),
}
VIEWS = {2: "the image and its mirror image", 10: "the crops of corners and centre, and their mirror images"}


def write_torchvision(network: AlexNet, config: ModelConfig, path: Path, overwrite: bool = False) -> dict[str, Any]:
    """Write a state dict for `torchvision.models.alexnet`; see `Run.export_torchvision`."""
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise WeightsError(f"{path} should end in .pth or .safetensors, the formats of weights for torchvision")
    if problem := _difference(network):
        row = f"torchvision's alexnet cannot hold this run's network, the variant {network.row.name!r}"
        raise WeightsError(f"{row}: {problem}; without --torchvision, alexnet export writes any network as ONNX")
    refuse_overwrite(path, overwrite)
    ours = _plain(network)
    state = {f"{theirs}.{kind}": ours[f"{name}.{kind}"] for theirs, name in LAYERS.items() for kind in ("weight", "bias")}
    if path.suffix == ".safetensors":
        content, load = memoryview(safetensors.torch.save(state, {"made_by": MADE_BY})), "safetensors.torch.load_file({})"
    else:
        content, load = _pickled(state), "torch.load({}, weights_only=True)"
    dropout = "" if network.row.dropout == 0.5 else f", dropout={network.row.dropout:g}"
    lines = [
        f"import {load.rpartition('.load')[0]}, torchvision",
        f"network = torchvision.models.alexnet(num_classes={len(config.labels)}{dropout}).eval()",
        f"network.load_state_dict({load.format(repr(str(path)))})",
    ]
    write_output(path, partial(_write, content, lambda part: read_torchvision(part.read_bytes(), path), ours, path), overwrite)
    return _result(path, config, lines)


def write_keras(network: AlexNet, config: ModelConfig, path: Path, overwrite: bool = False) -> dict[str, Any]:
    """Write a `.weights.h5` as Keras 3 does; see `Run.export_keras`."""
    if find_spec("h5py") is None:
        raise WeightsError("writing Keras files needs h5py: pip install h5py")
    if not path.name.endswith(".weights.h5"):  # Keras takes others for older formats
        raise WeightsError(f"{path} should end in .weights.h5, the format of weights in Keras 3")
    refuse_overwrite(path, overwrite)

    def read(part: Path) -> dict[str, Tensor]:
        with torch.device("meta"):
            copy = AlexNet(network.row, network.head.out_features, width=config.width)
        load_keras(part, copy)
        return _plain(copy)

    write_output(path, partial(_write, _hdf5(network), read, _plain(network), path), overwrite)
    size = config.preprocessing.input_side
    lines = [
        f"model = ...  # the tutorial's, or any of these layers, with {len(config.labels)} outputs",
        f"model.build((None, {size}, {size}, 3))",
        f"model.load_weights({str(path)!r})",
    ]
    return _result(path, config, lines) | {"layers": list(network.layer_names), "notes": list(_notes(network, size))}


def _difference(network: AlexNet) -> str | None:
    """Return the first difference from torchvision's network with as many classes, but for the rate of dropout, if any."""
    with torch.device("meta"):
        theirs = AlexNet("owt", network.head.out_features).layers
    for (name, layer), (there, other) in zip_longest(network.layers.items(), theirs.items(), fillvalue=("nothing", None)):
        if name != there:
            return f"it has {name} where torchvision has {there}"
        if type(layer) is not type(other) or (repr(layer) != repr(other) and not isinstance(layer, nn.Dropout)):
            return f"{name} is {layer}, and torchvision's {other}"
    return None


def _notes(network: AlexNet, size: int) -> Iterator[str]:
    """Yield what a Keras model must do, besides its layers, to predict as `network` does for images of `size` pixels."""
    layers = list(network.layers.items())
    before, flatten = next((layers[i - 1][0], layer) for i, (_, layer) in enumerate(layers) if isinstance(layer, FlattenMaps))
    with torch.device("meta"):
        plain = AlexNet(network.row, width=1 / 64)
        side = plain.activations(torch.empty(1, 3, size, size), [before])[1][before].shape[2]
    if side != flatten.grid:
        pooled = f"average the maps after {before} from {side} x {side} to {flatten.grid} x {flatten.grid} (adaptive pooling)"
        yield f"{pooled}, as this run has images of {size} pixels, and its variant {network.row.input_size}"
    for name, layer in layers:
        if isinstance(layer, nn.MaxPool2d) and layer.ceil_mode:
            yield f"round the size of {name} up: a window may reach over the right and lower edge"
        if isinstance(layer, Dropout2012) and layer.p:
            yield f"multiply by {1 - layer.p:g} in place of {name} when predicting, as in 2012"


def _plain(network: AlexNet) -> dict[str, Tensor]:
    """Return the weights and statistics as float32 on the CPU, each contiguous and with storage of its own."""
    floats = ((name, tensor) for name, tensor in network.state_dict().items() if tensor.is_floating_point())  # no counters
    return {name: tensor.to("cpu", torch.float32).clone(memory_format=torch.contiguous_format) for name, tensor in floats}


def _pickled(state: dict[str, Tensor]) -> memoryview:
    """Return what `torch.save` writes, with a comment at the end of the zip that says who made it."""
    buffer = io.BytesIO()  # into a file, torch would write the file's temporary name too
    torch.save(state, buffer)
    buffer.seek(-2, io.SEEK_END)  # the length of the comment
    buffer.write(len(ZIP_COMMENT).to_bytes(2, "little") + ZIP_COMMENT)
    return buffer.getbuffer()


def _hdf5(network: AlexNet) -> memoryview:
    """Return a `.weights.h5` of the layers that have weights; Keras finds a layer by its class and its number in the class."""
    import h5py

    buffer, seen = io.BytesIO(), Counter[str]()
    with h5py.File(buffer, "w") as file:
        file.attrs["made_by"] = np.bytes_(ZIP_COMMENT)
        for slot in slots(network):
            kind = KERAS_CLASSES[slot.kind]
            name = f"{kind}_{seen[kind]}".removesuffix("_0")
            seen[kind] += 1
            variables = file.create_group(f"layers/{name}/vars")
            variables.attrs["name"] = name
            for number, (view, shape) in enumerate(zip(slot.views, slot.shapes, strict=True)):
                variables[str(number)] = view.detach().to("cpu", torch.float32).reshape(shape).contiguous().numpy()
    return buffer.getbuffer()


def _write(
    content: memoryview, read: Callable[[Path], dict[str, Tensor]], ours: dict[str, Tensor], path: Path, part: Path
) -> None:
    """Write `content` to `part`, the temporary file of `path`; raise RunError unless what is `read` from it is `ours`."""
    part.write_bytes(content)
    theirs = read(part)
    if theirs.keys() != ours.keys() or any(_bytes(theirs[name]) != _bytes(tensor) for name, tensor in ours.items()):
        raise RunError(f"{path} was not written: read back, its weights differ from the run's")


def _bytes(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype, bytes]:
    return tuple(tensor.shape), tensor.dtype, tensor.contiguous().numpy().tobytes()


def _result(path: Path, config: ModelConfig, lines: list[str]) -> dict[str, Any]:
    preprocessing = config.preprocessing
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "labels": list(config.labels),
        "temperature": config.temperature,
        "preprocessing": preprocessing.model_dump(mode="json"),
        "images": list(steps(preprocessing)),
        "python": lines,
    }


def steps(preprocessing: Preprocessing) -> Iterator[str]:
    """Yield what is done to an image before the network, in words, step by step; levels are 0 to 255 at first."""
    side, full = preprocessing.side, preprocessing.cache_size == "full"
    resize = "bilinear, antialiased" if preprocessing.resize == "bilinear" and preprocessing.antialias else preprocessing.resize
    yield from (step.format(side=side, filter=resize if full else preprocessing.filter) for step in FITS[preprocessing.fit])
    if preprocessing.mean == "image":
        yield "subtract the mean image (mean_image in model.safetensors)"
    if preprocessing.mean == "each":
        yield "standardise each image (TensorFlow's per_image_standardization)"
    if preprocessing.crop is not None:
        side = preprocessing.crop
        yield f"cut out the centre {side} x {side}"
    if preprocessing.mean == "image-centre":
        yield "subtract the centre of the mean image (mean_image in model.safetensors)"
    if preprocessing.value_range == 1 and preprocessing.std != "each":
        yield "divide by 255"
    for verb, values, neutral in (("subtract", preprocessing.mean, 0), ("divide by", preprocessing.std, 1)):
        if not isinstance(values, str | float) and set(values) != {neutral}:
            yield f"{verb} {', '.join(f'{value:.6g}' for value in values)} (R, G, B)"
    if preprocessing.horizontal_flip:
        yield "mirror from left to right"
    if preprocessing.brightness:
        yield f"add {preprocessing.brightness:g}"
    if preprocessing.resized != side:
        yield f"scale to {preprocessing.resized} x {preprocessing.resized} ({resize})"
    if preprocessing.scale_factor > 1:
        yield f"repeat every pixel {preprocessing.scale_factor} x {preprocessing.scale_factor} times"
    if preprocessing.view_count > 1:
        yield f"average the probabilities of {VIEWS[preprocessing.view_count]}"
