"""Find the variant of a network that was read layer by layer, from a file of Caffe or ONNX, and name its weights."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alexnet.convert import operations
from alexnet.convert.operations import Operation
from alexnet.convert.torchvision import IMAGES as TORCHVISION_IMAGES
from alexnet.data.decode_pool import decode_one
from alexnet.errors import ImageError, WeightsError
from alexnet.network import variants
from alexnet.network.alexnet import AlexNet
from alexnet.network.variants import VARIANTS, LocalNorm, Variant

NAMES = ("bvlc", "caffenet", "owt")  # variants that such files hold
# Caffe's, apart from the crop. Images were scaled to 256x256 with `convert -resize` (examples/imagenet/readme.md), which
# filters as `bicubic` nearly does. The mean is of each channel of ilsvrc_2012_mean.npy (examples/00-classification.ipynb).
CAFFE_IMAGES = {
    **{"cache_size": 256, "fit": "stretch", "filter": "bicubic", "value_range": 255},
    **{"mean": (122.6789143, 116.6687676, 104.0069879), "std": 1.0},
}


def read_graph(form: str, path: Path, variant: str | None) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Return the variant of a file, its tensors under our names, for RGB images, and their preprocessing.

    Args:
        form: `caffe` or `onnx`.
        path: the file.
        variant: of several that fit, this one is meant; None: only one may fit.

    Raises:
        WeightsError: the file is damaged, or its network is none of the variants.
    """
    found, size = _read(form, path)
    if variant not in (None, *NAMES):
        raise WeightsError(f"{path} is a file of {form.title()}, and only the variants {', '.join(NAMES)} are read from these")
    rows = [VARIANTS[name] for name in NAMES if variant in (None, name)]
    texts = [operation.text for operation in found]
    fitting = [row for row in rows if texts == _texts(row, size)]
    if not fitting and operations.RELU not in texts:  # weights alone
        fitting = [row for row in rows if texts == [text for text in _texts(row, size) if _has_weights(text)]]
    if len(fitting) > 1:
        names = " or ".join(f"--variant {row.name}" for row in fitting)
        raise WeightsError(f"{path} has no norm and no pooling layers, whose order tells the variant: add {names}")
    if not fitting:
        raise WeightsError(f"{path}: {_difference(found, rows, size)}")
    (row,) = fitting
    tensors = _tensors(found, row, path)
    if row.name == "owt":
        return row.name, tensors, TORCHVISION_IMAGES
    tensors["features.conv1.weight"] = tensors["features.conv1.weight"].flip(1)  # BGR -> RGB, as their means
    side = size or row.input_size
    return row.name, tensors, {**CAFFE_IMAGES, "crop": side, "input": side}


def _read(form: str, path: Path) -> tuple[list[Operation], int]:
    """Return the layers of a file, read by a decoding process, and the size of its images, 0 if it has none."""
    reply = decode_one(f"alexnet.convert.{form}:layers", path, {})
    refused = str(reply) if isinstance(reply, ImageError) else reply.facts.get("refused")
    if isinstance(reply, ImageError) or refused:
        raise WeightsError(f"{path} {refused}")
    layers = reply.facts["layers"]
    ends = np.cumsum([math.prod(shape) for _, _, shapes in layers for shape in shapes])
    arrays = iter(np.split(np.frombuffer(bytearray(reply.body), np.float32), ends))
    found = [Operation(name, text, tuple(next(arrays).reshape(shape) for shape in shapes)) for name, text, shapes in layers]
    if not any(operation.arrays for operation in found):
        raise WeightsError(f"{path} holds no weights")
    return found, reply.facts["size"]


def _texts(row: Variant, size: int) -> list[str]:
    """Return the layers of a variant for images of `size` pixels (0: its own), as the readers describe them."""
    return list(_describe(row, size or row.input_size))


def _describe(row: Variant, size: int) -> Iterator[str]:
    for record in row.layers:
        match record:
            case variants.Conv():
                groups = row.towers if record.grouped else 1
                yield operations.convolution(record.kernel, record.stride, record.padding, groups)
                size = (size + 2 * record.padding - record.kernel) // record.stride + 1
            case variants.Act():
                yield operations.RELU
            case variants.Norm() if isinstance(row.norm, LocalNorm):
                norm = row.norm
                yield operations.normalisation(norm.size, norm.alpha * norm.size, norm.beta, norm.k)
            case variants.Pool():
                whole = (size - row.pool[0]) % row.pool[1] == 0
                yield operations.pooling(*row.pool, "" if whole else "up" if row.ceil_mode else "down")
                size = (size - row.pool[0]) // row.pool[1] + 1 + (row.ceil_mode and not whole)
            case variants.Dense():
                yield operations.DENSE
    yield operations.DENSE  # the head


def _has_weights(text: str) -> bool:
    return text.startswith(operations.DENSE) or "convolution" in text


def _difference(found: list[Operation], rows: list[Variant], size: int) -> str:
    """Return where a file first differs from the variant that it follows longest."""

    def common(row: Variant) -> int:
        pairs = zip((operation.text for operation in found), _texts(row, size), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    row = max(rows, key=common)
    place, texts = common(row), _texts(row, size)
    theirs = f"its layer {found[place].name!r} is {found[place].text}" if place < len(found) else "it ends there"
    ours = texts[place] if place < len(texts) else "nothing more"
    return f"{theirs}, where the variant {row.name!r} has {ours}"


def _tensors(found: list[Operation], row: Variant, path: Path) -> dict[str, Tensor]:
    """Return the weights and biases by our names."""
    with torch.device("meta"):
        layers = [name for name, layer in AlexNet(row).layers.items() if isinstance(layer, nn.Conv2d | nn.Linear)]
    names = [*(f"features.{name}" for name in layers[:-1]), "head"]
    tensors = {}
    for name, operation in zip(names, (each for each in found if _has_weights(each.text)), strict=True):
        if len(operation.arrays) != 2:
            raise WeightsError(
                f"{path}: its layer {operation.name!r} holds {len(operation.arrays)} arrays, not weights and a bias"
            )
        for part, array in zip(("weight", "bias"), operation.arrays, strict=True):
            tensors[f"{name}.{part}"] = torch.from_numpy(array)
    return tensors
