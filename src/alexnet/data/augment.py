"""Random augmentation of training images, one batch at a time, on the device of the batch.

Randomness is an input: each image comes with one uniform number for each of `DRAWS`, which depend only on (seed, epoch). So the
result does not depend on the device, the number of workers, or where an epoch was resumed.
"""

import math

import torch
from torch import Tensor

from alexnet.data.preprocessing import normalize, standardize
from alexnet.recipe import Augment, Preprocessing

# The random numbers of an image, each from 0 up to 1, by what they determine.
DRAWS = (
    *("shift_down", "shift_right", "horizontal_flip", "vertical_flip", "crop_down", "crop_right"),
    *("rotation", "translation_down", "translation_right", "shear", "zoom_down", "zoom_right"),
    *("red", "green", "blue"),
)
SHARED = [DRAWS.index(name) for name in ("horizontal_flip", "crop_down", "crop_right")]  # by `augment.together` images in a row


def training_input(images: Tensor, draws: Tensor, preprocessing: Preprocessing, changes: Augment) -> Tensor:
    """Augment and preprocess a batch for the network: N S S 3, uint8 or float32 -> N 3 I I float32, channels last in memory.

    `draws` are N x len(`DRAWS`) float32, from 0 up to 1; `horizontal_flip` and `colour_axes` of `changes` are resolved.
    """
    rng = dict(zip(DRAWS, draws.unbind(1), strict=True))
    x = standardize(images, preprocessing)
    x = _affine(x, rng, changes)
    x = _shift_crop_flip(x, rng, changes, preprocessing.crop)
    x = normalize(x, preprocessing)
    return _colour(x, draws[:, -3:], changes, preprocessing) if changes.colour_noise else x


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
    count, side = images.shape[:2]
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
    coordinates = torch.arange(side, device=images.device, dtype=torch.float32) - (side - 1) / 2  # from the centre
    rows, columns = torch.meshgrid(coordinates, coordinates, indexing="ij")
    source = torch.stack((rows, columns, torch.ones_like(rows)), -1) @ transform[:, None, :2].transpose(2, 3)  # N S S 2
    # grid_sample takes (x, y) from -1 to 1, the centres of the outer pixels; clamped, as not all devices support "border".
    grid = (source.flip(3) * (2 / max(1, side - 1))).clamp(-1, 1)
    x = images.float().permute(0, 3, 1, 2)
    moved = torch.nn.functional.grid_sample(x, grid, mode="bilinear", align_corners=True)
    return moved.permute(0, 2, 3, 1)


def _affine(images: Tensor, rng: dict[str, Tensor], changes: Augment) -> Tensor:
    low, high = changes.zoom
    pixels = changes.translation * images.shape[1]
    if not (changes.rotation or pixels or changes.shear or low != 1 or high != 1):
        return images
    limits = {"rotation": changes.rotation, "translation_down": pixels, "translation_right": pixels, "shear": changes.shear}
    rotation, down, right, shear = ((rng[name] * 2 - 1) * limit for name, limit in limits.items())
    zoom_down, zoom_right = (low + rng[name] * (high - low) for name in ("zoom_down", "zoom_right"))
    return affine(images, rotation, down, right, shear, zoom_down, zoom_right)


def _shift_crop_flip(images: Tensor, rng: dict[str, Tensor], changes: Augment, crop: int | None) -> Tensor:
    """Shift, crop and flip with a single indexing operation, as each pixel of the result is a pixel of the image."""
    side = images.shape[1]
    reach = round(side * changes.shift)
    if not reach and crop is None and changes.horizontal_flip is not True and not changes.vertical_flip:
        return images
    rows = _positions(side, reach, rng["shift_down"], crop, rng["crop_down"] if changes.crop else None)
    columns = _positions(side, reach, rng["shift_right"], crop, rng["crop_right"] if changes.crop else None)
    if changes.horizontal_flip is True:
        columns = torch.where((rng["horizontal_flip"] < 0.5)[:, None], columns.flip(1), columns)
    if changes.vertical_flip:
        rows = torch.where((rng["vertical_flip"] < 0.5)[:, None], rows.flip(1), rows)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    pixels = (image * side + rows[:, :, None]) * side + columns[:, None, :]
    return images.reshape(-1, 3).index_select(0, pixels.flatten()).view(*pixels.shape, 3)  # 3x as fast as images[...]


def _positions(side: int, reach: int, shift: Tensor, crop: int | None, crop_start: Tensor | None) -> Tensor:
    """Return the source of each row or column, N x (`crop` or `side`), reflected at borders without repeating the edge.

    The uniform numbers `shift` map to -`reach` to `reach`, `crop_start` to the first position of the crop; None centres it.
    """
    size = side if crop is None else crop
    start = torch.full_like(shift, (side - size) // 2) if crop_start is None else _choose(crop_start, side - size + 1)
    offset = _choose(shift, 2 * reach + 1) - reach + start
    positions = (torch.arange(size, device=shift.device)[None, :] + offset.long()[:, None]).abs()
    return torch.where(positions > side - 1, 2 * (side - 1) - positions, positions)


def _choose(draw: Tensor, count: int) -> Tensor:
    """Map uniform numbers from 0 up to 1 to integers from 0 to `count` - 1."""
    return (draw * count).floor().clamp_max(count - 1)


def _colour(images: Tensor, draws: Tensor, changes: Augment, preprocessing: Preprocessing) -> Tensor:
    """Add noise along the principal components of RGB, one per image (paper, section 4.1; 2012 source, convdata_jpeg.py).

    `colour_axes` are in units of pixel values from 0 to 1. The uniform `draws` are mapped to a normal distribution.
    """
    axes = torch.tensor(changes.colour_axes, device=images.device) * preprocessing.value_range
    if not isinstance(preprocessing.std, str):
        axes = axes / torch.tensor(preprocessing.std, device=images.device)
    normal = torch.special.ndtri(draws.cpu().double().clamp(1e-6, 1 - 1e-6)).float().to(images.device)
    noisy: Tensor = images + (normal * changes.colour_noise @ axes)[:, :, None, None]
    return noisy / (1 + changes.colour_noise) if changes.colour_shrink else noisy
