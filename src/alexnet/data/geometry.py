"""Geometric transforms of a batch of images, each with its own parameters."""

import math

import torch
from torch import Tensor


def warp(images: Tensor, transforms: Tensor) -> Tensor:
    """Move the pixels of each image by a linear map about its centre: N S S 3, uint8 or float32 -> N S S 3 float32.

    `transforms`, N 2 3 or N 3 3 float32, map (row, column, 1) of a pixel of the result to its source, in pixels from the
    centre. Values are interpolated bilinearly, and edge pixels are repeated outside.
    """
    side = images.shape[1]
    coordinates = torch.arange(side, device=images.device, dtype=torch.float32) - (side - 1) / 2  # from the centre
    rows, columns = torch.meshgrid(coordinates, coordinates, indexing="ij")
    source = torch.stack((rows, columns, torch.ones_like(rows)), -1) @ transforms[:, None, :2].transpose(2, 3)  # N S S 2
    # grid_sample takes (x, y) from -1 to 1, the centres of the outer pixels; clamped, as not all devices support "border".
    grid = (source.flip(3) * (2 / max(1, side - 1))).clamp(-1, 1)
    x = images.float().permute(0, 3, 1, 2)
    moved = torch.nn.functional.grid_sample(x, grid, mode="bilinear", align_corners=True)
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
    rows, columns = (_filters(boxes[:, axis], boxes[:, axis + 2], side, size) for axis in (0, 1))
    x = rows @ images.reshape(count, side, -1)  # N size S * 3
    x = columns @ x.view(count, size, side, 3).transpose(1, 2).reshape(count, side, -1)  # N size size * 3, columns first
    return x.view(count, size, size, 3).permute(0, 3, 2, 1).contiguous(memory_format=torch.channels_last)


def _filters(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return the weight of each of `side` pixels in each of `size` pixels that cover `length` pixels from `start`."""
    scale = (length / size)[:, None, None]
    centres = start[:, None, None] + (torch.arange(size, device=start.device) + 0.5)[None, :, None] * scale
    pixels = torch.arange(side, device=start.device) + 0.5
    weights = (1 - (pixels - centres).abs() / scale.clamp_min(1)).clamp_min(0)
    return weights / weights.sum(2, keepdim=True)
