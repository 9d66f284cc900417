"""Crop and resize an image as `data.preprocessing` does with Pillow, in PyTorch operators that export to ONNX.

Resizing is two matrix products whose weights are computed from the image's size: ONNX's own Resize cannot crop between pixels,
and keeps only 86 % of odd images within 0.01 of `predict`, where this keeps all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alexnet.recipe import Preprocessing

GAP = 2.0  # Pillow's `reducing_gap` (decode.py): images first shrink by whole factors, to this many times the size wanted
REACH = 1.5  # pixels of the result that this first step keeps around the box (Image.py: _get_safe_box, bicubic)


def crop_and_resize(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Scale an image, H W 3 uint8, to S S 3 float32, grey levels 0 to 255 (S = `preprocessing.side`).

    Equal to `data.preprocessing.pixels`, except that some levels round the other way.
    """
    side, full = preprocessing.side, preprocessing.cache_size == "full"
    axes = [torch.arange(count, dtype=torch.float64) for count in image.shape[:2]]
    boxes = _boxes([axis[-1] + 1 for axis in axes], preprocessing)
    if (preprocessing.resize if full else preprocessing.filter) == "nearest":
        rows, columns = (_nearest_full(*box, side) if full else _nearest(*box, side) for box in boxes)
        return image.index_select(0, rows).index_select(1, columns).float()
    weights = _bilinear_weights if full else _bicubic_weights
    rows, columns = (weights(axis, *box, preprocessing) for axis, box in zip(axes, boxes, strict=True))
    operands = (rows, image.permute(2, 0, 1).float(), columns.T)  # S H, C H W, W S
    if full:
        scaled = rows @ (operands[1] @ columns.T)
    else:  # in the order of Pillow 13, as levels are rounded after each step (Resample.c: horizontal_first)
        rows_left, columns_left = (axis[-1] + 1 - side for axis in axes)
        rows_first = (rows_left > 0) & (rows_left > 2 * columns_left)
        scaled = torch.cond(rows_first, _rows_first, _columns_first, operands)
    return scaled.permute(1, 2, 0)


def _rows_first(rows: Tensor, planes: Tensor, columns: Tensor) -> Tensor:
    return _rounded(_rounded(rows @ planes) @ columns)


def _columns_first(rows: Tensor, planes: Tensor, columns: Tensor) -> Tensor:
    return _rounded(rows @ _rounded(planes @ columns))


def _boxes(sizes: list[Tensor], preprocessing: Preprocessing) -> list[tuple[Tensor, Tensor]]:
    """Return where the crop begins and ends, in rows and in columns; its edges may lie between pixels of a stored image."""
    if preprocessing.fit == "stretch":
        return [(torch.zeros_like(size), size) for size in sizes]
    side = torch.minimum(*sizes)
    lows = [(size - side) / 2 for size in sizes]
    lows = [low.floor() for low in lows] if preprocessing.cache_size == "full" else lows
    return [(low, low + side) for low in lows]


def _bilinear_weights(axis: Tensor, low: Tensor, high: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the weight of each pixel along an axis in each pixel of the result: S x count float32."""
    scale = (high - low) / preprocessing.side
    away = (axis + 0.5 - _centres(low, scale, preprocessing.side)).abs()
    weights = 1 - (away / scale.clamp(min=1) if preprocessing.antialias else away).clamp(max=1)
    return _normalized(weights, (axis >= low) & (axis < high))


def _bicubic_weights(axis: Tensor, low: Tensor, high: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the weights of Pillow's two steps: means of `factor` pixels, then Keys' cubic of a = -0.5 (Resample.c)."""
    scale = (high - low) / preprocessing.side
    factor = (scale / GAP).floor().clamp(min=1) if preprocessing.reduced_decode else torch.ones_like(scale)
    reach = torch.where(factor > 1, scale * REACH, torch.inf)
    start, stop = (low - reach).floor().clamp(min=0), torch.minimum((high + reach).ceil(), axis[-1] + 1)
    block = ((axis - start) / factor).floor()
    away = (block + 0.5 - _centres((low - start) / factor, scale / factor, preprocessing.side)).abs()
    x = (away / (scale / factor).clamp(min=1)).clamp(max=2)  # where the cubic ends
    cubic = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5)
    pixels = torch.minimum(stop - start - block * factor, factor)  # of a block: the last one may have fewer
    return _normalized(cubic / pixels, (axis >= start) & (axis < stop))


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
