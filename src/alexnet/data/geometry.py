"""Geometric transforms of a batch of images, each with its own parameters."""

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, grid_sample


def warp(images: Tensor, transforms: Tensor) -> Tensor:
    """Move the pixels of each image by a linear map about its centre: N S S 3, uint8 or float32 -> N S S 3 float32.

    `transforms`, N 2 3 or N 3 3 float32, map (row, column, 1) of a pixel of the result to its source, in pixels from the
    centre. Values are interpolated bilinearly, and edge pixels are repeated outside.
    """
    side = images.shape[1]
    pixels = torch.arange(side, device=images.device, dtype=torch.float32)[:, None] - (side - 1) / 2  # from the centre
    # grid_sample takes (x, y) from -1 to 1, the centres of the outer pixels; clamped, as not all devices support "border".
    down, right, shift = (transforms[:, None, :2].flip(2) * (2 / max(1, side - 1))).unbind(3)  # N 1 2
    rows, columns = pixels * down + shift, pixels * right  # N S 2; added, they take a quarter of the time of a product
    grid = (rows[:, :, None] + columns[:, None]).clamp_(-1, 1)
    x = images.float().permute(0, 3, 1, 2)
    moved = grid_sample(x, grid, mode="bilinear", align_corners=True)
    return moved.permute(0, 2, 3, 1)


def affine(
    images: Tensor, rotation: Tensor, down: Tensor, right: Tensor, shear: Tensor, zoom_down: Tensor, zoom_right: Tensor
) -> Tensor:
    """Apply an affine map about its centre to each image, as Keras 3's `apply_affine_transform` does.

    The map from a pixel of the result to its source rotates, shifts, shears, then zooms; values are interpolated bilinearly,
    and edge pixels are repeated outside. `right` moves columns, though Keras' generator draws `tx` from the range of heights.

    `images` are N S S 3, uint8 or float32, the result is float32. Each parameter has a value per image: `rotation` and `shear`
    in degrees (Keras' `theta` and `shear`), `down` and `right` in pixels (`ty` and `tx`), `zoom_down` and `zoom_right` as
    factors on rows and columns (`zy` and `zx`), which make the image smaller if above 1.
    """
    count = len(images)
    turn, slant = rotation * (math.pi / 180), shear * (math.pi / 180)
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)

    def matrix(*values: Tensor) -> Tensor:
        return torch.stack(values, 1).view(count, 3, 3)

    transform = (
        matrix(turn.cos(), turn.sin(), zero, -turn.sin(), turn.cos(), zero, zero, zero, one)
        @ matrix(one, zero, down, zero, one, right, zero, zero, one)
        @ matrix(slant.cos(), zero, zero, -slant.sin(), one, zero, zero, zero, one)
        @ matrix(zoom_down, zero, zero, zero, zoom_right, zero, zero, zero, one)
    )
    return warp(images, transform)


def resample(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Scale a box of each image to `size` x `size`: N S S 3 float32 -> N 3 `size` `size` float32, channels last in memory.

    `boxes`, N 4 float32, are (top, left, height, width) in pixels. The result is that of Pillow's `resize` with
    `BILINEAR` and that `box`: where it makes an image smaller, the filter grows with the scale (antialiasing).
    """
    count, side = images.shape[:2]
    # As matrix products, of which almost all weights are 0, the two sums take longer: three times as long at 227 pixels.
    pixels, weights = _taps(boxes[:, 0], boxes[:, 2], side, size)
    starts = side * torch.arange(count, device=images.device).view(-1, 1, 1)  # of the images, among all rows
    x = _weighted_sums(images.reshape(count * side, -1), starts + pixels, weights)  # N * size, S * 3
    pixels, weights = _taps(boxes[:, 1], boxes[:, 3], side, size)
    starts = side * torch.arange(count * size, device=images.device).view(count, size, 1, 1)  # of the rows, among all pixels
    x = _weighted_sums(x.view(-1, 3), starts + pixels[:, None], weights[:, None].expand(-1, size, -1, -1))
    return x.view(count, size, size, 3).permute(0, 3, 1, 2)


def _taps(start: Tensor, length: Tensor, side: int, size: int) -> tuple[Tensor, Tensor]:
    """Return which of `side` pixels make each of `size` pixels that cover `length` pixels from `start`, and their weights.

    Both are N `size` K, int64 and float32. K is the most pixels that a filter can cover: 2 if no box is larger than `size`.
    """
    scale = (length / size)[:, None, None]
    centres = start[:, None, None] + (torch.arange(size, device=start.device) + 0.5)[None, :, None] * scale
    reach = scale.clamp_min(1)
    taps = torch.arange(math.ceil(2 * max(1.0, side / size)), device=start.device)
    pixels = (centres - reach - 0.5).floor() + 1 + taps
    weights = (1 - (pixels + 0.5 - centres).abs() / reach).clamp_min(0) * ((pixels >= 0) & (pixels < side))
    return pixels.clamp(0, side - 1).long(), weights / weights.sum(2, keepdim=True)


def _weighted_sums(x: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Return sums of the rows of `x`, R F: each of the K that the last dimension of `rows` names, times their `weights`."""
    count = rows.shape[-1]
    return embedding_bag(rows.view(-1, count), x, per_sample_weights=weights.reshape(-1, count), mode="sum")
