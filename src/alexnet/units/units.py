"""Find the images that excite each unit of a layer most (Zeiler and Fergus 2014), and where in them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode_pool import Source
from alexnet.errors import DataError, ImageError, VariantError, counted
from alexnet.inference.features import batch_activations
from alexnet.inference.predict import source_name
from alexnet.network.alexnet import AlexNet
from alexnet.network.summary import ReceptiveField, summarize
from alexnet.progress import track
from alexnet.recipe import Preprocessing
from alexnet.run import ModelConfig

SHOWN = 24  # units, if none are named
IMAGES = 9  # for each unit

# Top, left, height and width, in pixels of the image as it goes in; changing its size reaches a pixel further.
Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Excited:
    """The images that excite some units of a layer most, U units x K images.

    Attributes:
        layer: name of the layer.
        units: numbers of its units, from 0: channels of maps, or places in a vector.
        values: activations, largest first, U K float32.
        images: positions in the sources, U K int64.
        positions: row and column in the unit's map, U K 2 int64; 0 for vectors.
        skipped: images that could not be read, `{"image", "error"}`.
    """

    layer: str
    units: tuple[int, ...]
    values: NDArray[np.float32]
    images: NDArray[np.int64]
    positions: NDArray[np.int64]
    skipped: list[dict[str, str]]


def excite(
    network: AlexNet, config: ModelConfig, sources: Sequence[Source], layer: str, units: Sequence[int] | None = None
) -> Excited:
    """Find the images that excite the units of a layer most, each image once for a unit.

    Raises:
        VariantError: there is no such layer or unit.
        DataError: no image can be read.
    """
    layer = network.layer_name(layer)
    chosen: NDArray[np.int64] | None = None
    best: list[NDArray[Any]] | None = None  # values, images, positions as one number, width of the map
    skipped, seen, width = [], 0, 1
    for batch, arrays in batch_activations(network, config, track(sources, "Looking", len(sources)), [layer], "float32"):
        readable = [i for i, (_, image) in enumerate(batch) if not isinstance(image, ImageError)]
        skipped += [{"image": source_name(s), "error": str(x)} for s, x in batch if isinstance(x, ImageError)]
        maps = arrays[layer]
        width = maps.shape[3] if maps.ndim == 4 else 1
        if chosen is None:
            chosen = chosen_units(layer, units, maps.shape[1])
        if readable:
            flat = maps.reshape(len(maps), maps.shape[1], -1)[:, chosen].transpose(1, 0, 2)  # units, images, positions
            found = [flat.max(2), np.broadcast_to(np.array(readable) + seen, flat.shape[:2]), flat.argmax(2)]
            best = _largest(found if best is None else [np.concatenate(pair, 1) for pair in zip(best, found, strict=True)])
        seen += len(batch)
    if best is None or chosen is None:
        raise DataError(f"none of {counted(len(sources), 'image')} can be read")
    values, images, at = best
    return Excited(layer, tuple(chosen.tolist()), values, images, np.stack(np.divmod(at, width), 2), skipped)


def chosen_units(layer: str, units: Sequence[int] | None, count: int) -> NDArray[np.int64]:
    """Return the numbers of units, by default the first, if a layer of `count` units has them."""
    given = range(min(SHOWN, count)) if units is None else units
    if len(given) == 0 or min(given) < 0 or max(given) >= count:
        raise VariantError(f"{layer} has units from 0 to {count - 1}, not {', '.join(map(str, given))}")
    return np.array(given, dtype=np.int64)


def _largest(found: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Keep the images with the largest values of each unit; of equal ones, the first."""
    order = np.argsort(-found[0], 1, kind="stable")[:, :IMAGES]
    return [np.take_along_axis(part, order, 1) for part in found]


def boxes(network: AlexNet, preprocessing: Preprocessing, excited: Excited) -> list[list[Box]]:
    """Return the part of each image that the unit sees: U lists of K boxes, which may reach over the border."""
    box = field_box(network, preprocessing, excited.layer)
    return [[box(int(row), int(column)) for row, column in places] for places in excited.positions]


def field_box(network: AlexNet, preprocessing: Preprocessing, layer: str) -> Callable[[int, int], Box]:
    """Return a function of a row and a column of a layer's maps: the part of the image that the units there see."""
    field = next(row.field for row in summarize(network.row).layers if row.name == layer)
    side = preprocessing.crop or preprocessing.side
    return partial(_box, field, side=side, scale=side / preprocessing.input_side)


def _box(field: ReceptiveField, row: int, column: int, side: int, scale: float) -> Box:
    if field.covers(round(side / scale)):
        return 0, 0, side, side
    top, left = (math.floor((place * field.stride - field.padding) * scale) for place in (row, column))
    bottom, right = (math.ceil((place * field.stride - field.padding + field.size) * scale) for place in (row, column))
    return top, left, bottom - top, right - left


def to_json(excited: Excited, sources: Sequence[Source], places: list[list[Box]], figure: Path) -> dict[str, Any]:
    """Return the result of `Run.units`."""
    units = []
    for unit, values, images, parts in zip(excited.units, excited.values, excited.images, places, strict=True):
        rows = zip(images.tolist(), values.tolist(), parts, strict=True)
        found = [{"image": source_name(sources[i]), "value": value, "box": list(box)} for i, value, box in rows]
        units.append({"unit": unit, "images": found})
    return {"layer": excited.layer, "units": units, "figure": str(figure), "skipped": excited.skipped}
