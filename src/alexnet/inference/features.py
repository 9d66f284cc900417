"""Activations of any layers as arrays, of any number of images: a batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.data.decode_pool import Source
from alexnet.data.preprocessing import PixelArray
from alexnet.errors import DataError, ImageError
from alexnet.inference.forward import activations
from alexnet.inference.predict import iter_images, source_name
from alexnet.network.alexnet import AlexNet
from alexnet.run import ModelConfig

BATCH = 128

Arrays = dict[str, NDArray[np.float32]]


class Features(NamedTuple):
    """The activations of a batch of images.

    `images` are the names of those that could be read, in order; `layers` has a float32 array for each layer, a row an image:
    maps N C H W, vectors N units. `errors` are the others, `{"image", "error"}`.
    """

    images: list[str]
    layers: Arrays
    errors: list[dict[str, str]]


def features(network: AlexNet, config: ModelConfig, sources: Iterable[Source], layers: Sequence[str]) -> Arrays:
    """Return the activations of `layers` as in `Features`, a row for each source, in order; all of them are kept in memory.

    Raises:
        DataError: no image, or one that cannot be read: a row that is not there would shift all others.
        VariantError: no such layer.
    """
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in layers}
    for batch in stream_features(network, config, sources, layers):
        if batch.errors:
            first = batch.errors[0]
            raise DataError(
                f"{first['image']} cannot be read: {first['error']}; leave it out, or take stream_features, which goes on"
            )
        for name, rows in batch.layers.items():
            parts[name].append(rows)
    if not all(parts.values()):
        raise DataError("no images to look at: name files, folders with images in them, or globs")
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def stream_features(
    network: AlexNet, config: ModelConfig, sources: Iterable[Source], layers: Sequence[str], precision: str = "float32"
) -> Iterator[Features]:
    """Yield the activations of `layers`, of up to 128 sources at a time, in order; sources are as for `predict`.

    A layer gives what stands behind it in the network's graph: `conv5` its own sums, `relu5` those that are positive. Dropout
    is off. `precision` is what the network computes in; unlike predicting, float32, if nothing else is said.

    Raises:
        VariantError: no such layer.
    """
    for batch, arrays in batch_activations(network, config, sources, layers, precision):
        read = [source_name(source) for source, image in batch if not isinstance(image, ImageError)]
        errors = [
            {"image": source_name(source), "error": str(image)} for source, image in batch if isinstance(image, ImageError)
        ]
        yield Features(read, arrays, errors)


def batch_activations(
    network: AlexNet, config: ModelConfig, sources: Iterable[Source], layers: Sequence[str], precision: str
) -> Iterator[tuple[list[tuple[Source, PixelArray | ImageError]], Arrays]]:
    """Yield batches of sources with their images, or the reasons for none, and the activations of those that have one."""
    preprocessing = config.preprocessing
    with closing(iter_images(sources, preprocessing)) as images:
        while batch := list(islice(images, BATCH)):
            read = [image for _, image in batch if not isinstance(image, ImageError)]
            stacked = np.stack(read) if read else np.empty((0, preprocessing.side, preprocessing.side, 3), np.uint8)
            yield batch, activations(network, torch.from_numpy(stacked), preprocessing, layers, precision)
