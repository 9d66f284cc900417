"""What fits an image of any size to a network, as an ONNX graph: the same numbers as `images.pixels` gives.

Scaling is two matrix products, of weights that the graph computes from the image's size. ONNX's own Resize has no box whose
edges lie between pixels and does not round between its two passes; Pillow has and does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from alexnet.export.graph import Graph, Operand, Value, tensor
from alexnet.recipe import Preprocessing

GAP = 2.0  # images are made smaller by whole numbers first, as far as this many times the size wanted (decode.py)
BITS = 22  # behind the point of Pillow's weights (Resample.c: PRECISION_BITS)
REACH = 1.5  # pixels of the result around the box that a first step keeps (Image.py: _get_safe_box, bicubic)

Kernel = Callable[[Value], Value]


def fit_graph(preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return the graph from `image`, H W 3 uint8, to `pixels`, 1 S S 3 float32 (S = `side`): grey levels 0 to 255."""
    graph = Graph()
    image = Value(graph, "image")
    size = graph.op("Shape", image, start=0, end=2).to(np.float64)  # height, width
    low, high = size * 0.0, size
    if preprocessing.fit == "crop":
        side = graph.op("ReduceMin", size, keepdims=0)
        low = (size - side) / 2.0
        high = low + side
    fit_image = (
        _full(image, low, high, preprocessing)
        if preprocessing.cache_size == "full"
        else _stored(image, size, low, high, preprocessing)
    )
    pixels = graph.op("Unsqueeze", fit_image, [0])
    given = tensor("image", np.uint8, ["height", "width", 3])
    return graph.model(given, pixels, tensor("pixels", np.float32, [1, preprocessing.side, preprocessing.side, 3]))


def _stored(image: Value, size: Value, low: Value, high: Value, preprocessing: Preprocessing) -> Value:
    """Do what Pillow's `resize` does for `decode.stored_pixels`: H W 3 uint8 -> S S 3 float32, whole numbers."""
    op = image.graph.op
    if preprocessing.filter == "nearest":
        return _picked(image, [_affine(low[axis], high[axis], preprocessing.side) for axis in (0, 1)]).to(np.float32)
    levels = image.to(np.float32)
    if preprocessing.reduced_decode:
        levels, size, low, high = _reduced(image, size, low, high, preprocessing.side)
    low, high = low.to(np.float32), high.to(np.float32)  # as Pillow keeps them
    length = (high - low).to(np.float64)

    def weights(axis: int) -> Value:
        found = _weights(size[axis], low.to(np.float64)[axis], length[axis], preprocessing.side, _bicubic)
        return op("Round", found * 2.0**BITS) * 2.0**-BITS

    def rounded(x: Value) -> Value:
        return op("Clip", op("Floor", x + np.float32(0.5)), np.float32(0), np.float32(255))

    more = size - float(preprocessing.side)  # rows, columns; what follows is Pillow 13's order (Resample.c: horizontal_first)
    rows_first = op("And", op("Greater", more[0], 0.0), op("Greater", more[0], more[1] * 2.0))
    return _scaled(levels, weights, rounded, rows_first)


def _full(image: Value, low: Value, high: Value, preprocessing: Preprocessing) -> Value:
    """Do what `images.fit_image` does for images stored as they are: H W 3 uint8 -> S S 3 float32."""
    op = image.graph.op
    low, high = op("Floor", low), op("Floor", high)
    image, size = op("Slice", image, low.to(np.int64), high.to(np.int64), [0, 1]), high - low
    if preprocessing.resize == "nearest":
        steps = op("Range", np.float32(0), np.float32(preprocessing.side), np.float32(1)) + np.float32(0.5)
        scales = size.to(np.float32) / np.float32(preprocessing.side)  # PyTorch's, too, are float32
        return _picked(image, [op("Floor", steps * scales[axis]) for axis in (0, 1)]).to(np.float32)

    def weights(axis: int) -> Value:
        return _weights(size[axis], 0.0, size[axis], preprocessing.side, _triangle, preprocessing.antialias)

    return _scaled(image.to(np.float32), weights, lambda x: x)


def _weights(count: Value, low: Operand, length: Value, side: int, kernel: Kernel, antialias: bool = True) -> Value:
    """Return what each of `count` pixels adds to each of `side` that cover `length` pixels from `low` on: S x count float64."""
    op = count.graph.op
    scale = length / float(side)
    centres = (op("Range", 0.0, float(side), 1.0) + 0.5) * scale + low
    away = op("Range", 0.0, count, 1.0) + 0.5 - op("Unsqueeze", centres, [1])
    found = kernel(op("Abs", away / op("Max", scale, 1.0) if antialias else away))
    return found / op("ReduceSum", found, [1])


def _bicubic(x: Value) -> Value:
    """Keys' cubic of a = -0.5, at distances of 0 or more (Resample.c: bicubic_filter)."""
    op = x.graph.op
    x = op("Min", x, 2.0)  # where it ends
    near = (x * 1.5 - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return op("Where", op("Less", x, 1.0), near, far)


def _triangle(x: Value) -> Value:
    """Linear interpolation, at distances of 0 or more."""
    op = x.graph.op
    return op("Sub", 1.0, op("Min", x, 1.0))


def _scaled(
    levels: Value, weights: Callable[[int], Value], rounded: Callable[[Value], Value], rows_first: Value | None = None
) -> Value:
    """Scale H W 3 to S S 3, first across and then down, or the other way round where `rows_first`.

    `weights` are those of an axis. Pillow rounds and PyTorch does not, so that with one the order matters.
    """
    graph, op = levels.graph, levels.graph.op
    planes = op("Transpose", levels, perm=[2, 0, 1])
    columns = op("Transpose", weights(1).to(np.float32), perm=[1, 0])  # W S
    rows = weights(0).to(np.float32)  # S H

    def across(x: Value) -> Value:
        return rounded(op("MatMul", x, columns))

    def down(x: Value) -> Value:
        return rounded(op("MatMul", rows, x))

    if rows_first is None:
        planes = down(across(planes))
    else:
        planes = graph.either(rows_first, lambda: across(down(planes)), lambda: down(across(planes)))
    return op("Transpose", planes, perm=[1, 2, 0])


def _picked(image: Value, places: list[Value]) -> Value:
    """Return the pixels of H W 3 in these rows and columns."""
    op = image.graph.op
    for axis, places_there in enumerate(places):
        image = op("Gather", image, places_there.to(np.int64), axis=axis)
    return image


def _affine(low: Value, high: Value, side: int) -> Value:
    """Return where Pillow's nearest neighbours lie: a sum, as in Geometry.c, as a product would round otherwise."""
    op = low.graph.op
    scale = (high - low) / float(side)
    steps = op("Expand", scale, [side - 1]) if side > 1 else None
    first = op("Unsqueeze", low + scale * 0.5, [0])
    return first if steps is None else op("CumSum", op("Concat", first, steps, axis=0), 0)


def _reduced(image: Value, size: Value, low: Value, high: Value, side: int) -> tuple[Value, Value, Value, Value]:
    """Make a large image smaller by whole numbers, as Pillow's `resize` with a `reducing_gap` does first.

    Returns the means of blocks, h w 3 float32, whole numbers, their size, and the box in them. Where nothing is large, a block
    is a pixel.
    """
    op = image.graph.op
    scale = (high - low) / float(side)
    factor = op("Max", op("Floor", scale / GAP), 1.0)
    large = op("Greater", op("ReduceMax", factor, keepdims=0), 1.0)
    start = op("Where", large, op("Max", op("Floor", low - scale * REACH), 0.0), 0.0)
    stop = op("Where", large, op("Min", op("Ceil", high + scale * REACH), size), size)
    length = stop - start
    blocks = op("Ceil", length / factor)
    missing = (blocks * factor - length).to(np.int64)
    part = op("Slice", image, start.to(np.int64), stop.to(np.int64), [0, 1]).to(np.int32)
    pads = op("Concat", np.zeros(3, np.int64), missing, [0], axis=0)  # h w c at the beginning, then at the end
    sums = op("Pad", part, pads)
    for axis in (0, 1):
        sums = _block_sums(sums, axis, blocks[axis], factor[axis])
    counts = [_block_sizes(length[axis], blocks[axis], factor[axis]) for axis in (0, 1)]
    pixels = op("Mul", op("Unsqueeze", counts[0], [1, 2]), op("Unsqueeze", counts[1], [1]))  # h w 1
    # Reduce.c: in whole numbers, by a multiplier of 24 bits instead of a division, so that some means are rounded down.
    halves, multiplier = op("Floor", pixels / 2.0), op("Floor", op("Div", 2.0**24, pixels))
    means = op("Floor", (sums.to(np.float64) + halves) * multiplier * 2.0**-24)
    return means.to(np.float32), blocks, (low - start) / factor, (high - start) / factor


def _block_sums(levels: Value, axis: int, blocks: Value, factor: Value) -> Value:
    """Add up so many rows (axis 0) or columns (1) in a row: h w 3 int32."""
    op = levels.graph.op
    pair = op("Concat", *(op("Unsqueeze", part.to(np.int64), [0]) for part in (blocks, factor)), axis=0)
    before, after = op("Shape", levels, start=0, end=axis), op("Shape", levels, start=axis + 1, end=3)
    return op("ReduceSum", op("Reshape", levels, op("Concat", before, pair, after, axis=0)), [axis + 1], keepdims=0)


def _block_sizes(length: Value, blocks: Value, factor: Value) -> Value:
    """Return how many pixels each block has, the last one maybe fewer: float64."""
    op = length.graph.op
    return op("Min", length - op("Range", 0.0, blocks, 1.0) * factor, factor)
