"""Crop and resize an image as `data.preprocessing` does with Pillow, in PyTorch operators that export to ONNX.

Resizing is two matrix products whose weights are computed from the image's size: ONNX's own Resize cannot crop between pixels,
and keeps only 86 % of odd images within 0.01 of `predict`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from alexnet.recipe import Preprocessing

# Pillow's `reducing_gap` (decode.py): images are first reduced by whole factors, to at least this multiple of the final size
GAP = 2.0
REACH = {"bicubic": 1.5, "bilinear": 0.5}  # pixels of the result that this first step keeps around the box (_get_safe_box)
MARGIN = 24  # blocks beyond `4 * side`: the first step leaves less than four for each pixel of the result, and those around

Axes = list[Tensor]  # a value for the rows and one for the columns
Boxes = list[tuple[Tensor, Tensor]]  # where the crop begins and ends, in rows and in columns


def crop_and_resize(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Scale an image, H W 3 uint8, to S S 3 float32, grey levels 0 to 255 (S = `preprocessing.side`).

    Equal to `data.preprocessing.pixels`, except that some levels round the other way.
    """
    side, full = preprocessing.side, preprocessing.cache_size == "full"
    axes = [torch.arange(count, dtype=torch.float64) for count in image.shape[:2]]
    sizes = lengths = [axis[-1] + 1 for axis in axes]
    boxes = _boxes(sizes, preprocessing)
    if (preprocessing.resize if full else preprocessing.filter) == "nearest":
        rows, columns = (_nearest_full(*box, side) if full else _nearest(*box, side) for box in boxes)
        return image.index_select(0, rows).index_select(1, columns).float()
    planes = image.permute(2, 0, 1)  # C H W
    if full:
        rows, columns = (_full_weights(axis, *box, preprocessing) for axis, box in zip(axes, boxes, strict=True))
        return (rows @ (planes.float() @ columns.T)).permute(1, 2, 0)
    targets = _scaled(sizes, side) if preprocessing.fit == "torchvision" else [torch.tensor(side), torch.tensor(side)]
    if preprocessing.reduced_decode:
        planes, boxes, sizes, lengths = _reduced(planes, boxes, sizes, side, REACH[preprocessing.filter])
        axes = [torch.arange(count, dtype=torch.float64) for count in planes.shape[1:]]
    kernel = _bicubic if preprocessing.filter == "bicubic" else _bilinear
    rows, columns = (_weights(*each, side, kernel) for each in zip(axes, boxes, lengths, strict=True))
    # In the order of Pillow 13, as levels are rounded after each step (Resample.c: horizontal_first).
    rows_left, columns_left = (size - target for size, target in zip(sizes, targets, strict=True))
    rows_first = (rows_left > 0) & (rows_left > 2 * columns_left)
    operands = (rows, planes.float(), columns.T)  # S H, C H W, W S
    scaled: Tensor = torch.cond(rows_first, _rows_first, _columns_first, operands)
    return scaled.permute(1, 2, 0)


def _rows_first(rows: Tensor, planes: Tensor, columns: Tensor) -> Tensor:
    return _rounded(_rounded(rows @ planes) @ columns)


def _columns_first(rows: Tensor, planes: Tensor, columns: Tensor) -> Tensor:
    return _rounded(rows @ _rounded(planes @ columns))


def _boxes(sizes: Axes, preprocessing: Preprocessing) -> Boxes:
    """Return where the crop begins and ends, in rows and in columns; its edges may lie between pixels of a stored image."""
    if preprocessing.fit == "stretch":
        return [(torch.zeros_like(size), size) for size in sizes]
    if preprocessing.fit == "torchvision":
        scaled = _scaled(sizes, preprocessing.side)
        starts = [((size - preprocessing.side) / 2).round() for size in scaled]  # halves to the even pixel
        ratios = [size / target for size, target in zip(sizes, scaled, strict=True)]
        return [(at * ratio, (at + preprocessing.side) * ratio) for at, ratio in zip(starts, ratios, strict=True)]
    side = torch.minimum(*sizes)
    lows = [(size - side) / 2 for size in sizes]
    lows = [low.floor() for low in lows] if preprocessing.cache_size == "full" else lows
    return [(low, low + side) for low in lows]


def _scaled(sizes: Axes, side: int) -> Axes:
    """Return the size of the scaled image, of which torchvision takes a crop (decode.py: _resize_and_crop)."""
    short = torch.minimum(*sizes)
    return [(side * size / short).floor() for size in sizes]


def _full_weights(axis: Tensor, low: Tensor, high: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the weight of each pixel along an axis in each pixel of the result: S x count float32."""
    scale = (high - low) / preprocessing.side
    away = (axis + 0.5 - _centres(low, scale, preprocessing.side)).abs()
    weights = 1 - (away / scale.clamp(min=1) if preprocessing.antialias else away).clamp(max=1)
    return _normalized(weights, (axis >= low) & (axis < high))


def _reduced(planes: Tensor, boxes: Boxes, sizes: Axes, side: int, reach: float) -> tuple[Tensor, Boxes, Axes, Axes]:
    """Shrink C H W uint8 to the rounded means of blocks, as Pillow does first if an image is much too large (Reduce.c).

    Return C B B, of which some blocks are spare as B is fixed, the boxes in blocks, the size of the image that Pillow resizes
    then, and the number of blocks that are not spare. Sums are differences of running sums.
    """
    factors = [((high - low) / side / GAP).floor().clamp(min=1) for low, high in boxes]
    smaller = torch.maximum(*factors) > 1
    counts, new_boxes, new_sizes, lengths = [], [], [], []
    for dim, (low, high), size, factor in zip((1, 2), boxes, sizes, factors, strict=True):
        # below 4 pixels per pixel of the result, the cubic reaches no further
        around = torch.where(smaller, (high - low) / side * reach, 8)
        start, stop = (low - around).floor().clamp(min=0), torch.minimum((high + around).ceil(), size)
        edges = torch.minimum(start + factor * torch.arange(4 * side + MARGIN + 1, dtype=torch.float64), stop)
        sums = planes.cumsum(dim, dtype=torch.int32 if dim == 1 else torch.int64)
        at_edges = sums.index_select(dim, (edges.long() - 1).clamp(min=0))
        planes = torch.where((edges > 0).view(-1, 1) if dim == 1 else edges > 0, at_edges, 0).diff(dim=dim)
        lengths.append(((stop - start) / factor).ceil())
        counts.append(edges.diff().clamp(min=1))
        new_boxes.append(((low - start) / factor, (high - start) / factor))
        new_sizes.append(torch.where(smaller, lengths[-1], size))
    count = counts[0][:, None] * counts[1]
    reciprocal = (2.0**24 / count.float()).floor()  # in fixed point: some means come out a level lower
    means = ((planes + (count / 2).floor()) * reciprocal / 2.0**24).floor()
    return means, new_boxes, new_sizes, lengths


def _weights(axis: Tensor, box: tuple[Tensor, Tensor], length: Tensor, side: int, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the weights of a kernel on the first `length` pixels of an axis (Resample.c)."""
    low, high = box
    scale = (high - low) / side
    away = (axis + 0.5 - _centres(low, scale, side)).abs()
    return _normalized(kernel(away / scale.clamp(min=1)), axis < length)


def _bicubic(x: Tensor) -> Tensor:
    """Return Keys' cubic of a = -0.5 at a distance `x`, in pixels of the result."""
    x = x.clamp(max=2)  # where it ends
    return torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5)


def _bilinear(x: Tensor) -> Tensor:
    """Return the triangle at a distance `x`, in pixels of the result."""
    return 1 - x.clamp(max=1)


def _centres(low: Tensor, scale: Tensor, side: int) -> Tensor:
    """Return where the centres of the result's pixels lie in the image: S x 1."""
    return ((torch.arange(side, dtype=torch.float64) + 0.5) * scale + low)[:, None]


def _normalized(weights: Tensor, kept: Tensor) -> Tensor:
    weights = torch.where(kept, weights, 0)
    return (weights / weights.sum(1, keepdim=True)).float()


def _rounded(levels: Tensor) -> Tensor:
    return (levels + 0.5).floor().clamp(0, 255)


def _nearest(low: Tensor, high: Tensor, side: int) -> Tensor:
    """Return Pillow's nearest neighbours, computed by a sum, as in Geometry.c: a product would round differently."""
    scale = (high - low) / side
    return torch.cat([(low + scale / 2)[None], scale.expand(side - 1)]).cumsum(0).long()


def _nearest_full(low: Tensor, high: Tensor, side: int) -> Tensor:
    """Return PyTorch's nearest neighbours, computed in float32."""
    scale = (high - low).float() / side
    return ((torch.arange(side) + 0.5) * scale).floor().long() + low.long()
