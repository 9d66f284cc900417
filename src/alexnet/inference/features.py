"""Feature extraction: the activations of layers for any number of images, a batch at a time."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.data.decode_pool import Source
from alexnet.errors import DataError, ImageError
from alexnet.inference.forward import activations
from alexnet.inference.predict import BATCH, Decoded, iter_images, source_name
from alexnet.network.alexnet import AlexNet
from alexnet.run import ModelConfig

Arrays = dict[str, NDArray[np.float32]]


class Features(NamedTuple):
    """The activations of a batch of images.

    `images` are the names of the images that could be read, in order. `layers` maps the name of each layer to a float32 array
    with a row per image: feature maps N C H W or vectors N units. `errors` has `{"image", "error"}` for each of the others.
    """

    images: list[str]
    layers: Arrays
    errors: list[dict[str, str]]


def features(network: AlexNet, config: ModelConfig, sources: Iterable[Source], layers: Sequence[str]) -> Arrays:
    """Return the activations of `layers` for all sources, as in `Features`."""
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in layers}
    for batch in stream_features(network, config, sources, layers):
        if batch.errors:
            name, reason = batch.errors[0].values()
            raise DataError(f"{name} cannot be read: {reason}; leave it out, or use stream_features, which skips it")
        for name, rows in batch.layers.items():
            parts[name].append(rows)
    if not all(parts.values()):
        raise DataError("no images: name files, folders with images in them, or globs")
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def stream_features(
    network: AlexNet, config: ModelConfig, sources: Iterable[Source], layers: Sequence[str], precision: str = "float32"
) -> Iterator[Features]:
    """Yield the activations of `layers` for batches of up to 128 sources, in order."""
    for batch, arrays in batch_activations(network, config, sources, layers, precision):
        named = [(source_name(source), image) for source, image in batch]
        errors = [{"image": name, "error": str(image)} for name, image in named if isinstance(image, ImageError)]
        yield Features([name for name, image in named if not isinstance(image, ImageError)], arrays, errors)


def batch_activations(
    network: AlexNet, config: ModelConfig, sources: Iterable[Source], layers: Sequence[str], precision: str
) -> Iterator[tuple[list[Decoded], Arrays]]:
    """Yield batches of sources, each with its image or error, and the activations of the images."""
    preprocessing = config.preprocessing
    with closing(iter_images(sources, preprocessing)) as images:
        while batch := list(islice(images, BATCH)):
            read = [image for _, image in batch if not isinstance(image, ImageError)]
            stacked = np.stack(read) if read else np.empty((0, preprocessing.side, preprocessing.side, 3), np.uint8)
            yield batch, activations(network, torch.from_numpy(stacked), preprocessing, layers, precision)
