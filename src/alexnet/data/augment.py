"""Random augmentation of training images, one batch at a time, on the device of the batch.

Randomness is an input: each image comes with one uniform number for each of `DRAWS`, which depend only on (seed, epoch). So the
result does not depend on the device, the number of workers, the other images of the batch, or where an epoch was resumed.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from alexnet.data.colour import brighten, contrast, saturate
from alexnet.data.geometry import affine, resample
from alexnet.data.mixing import erase, mix, mixture
from alexnet.data.preprocessing import normalize, scale_levels, standardize
from alexnet.data.trivial import trivial
from alexnet.network.device import send
from alexnet.recipe import Augment, Preprocessing

# The random numbers of an image, each from 0 up to 1, by what they determine: those of the first versions, whose trainings
# still give the same networks, and more.
FIRST_DRAWS = (
    *("shift_down", "shift_right", "horizontal_flip", "vertical_flip", "crop_down", "crop_right"),
    *("rotation", "translation_down", "translation_right", "shear", "zoom_down", "zoom_right"),
    *("red", "green", "blue"),
)
MORE_DRAWS = (
    *("operation", "strength", "direction", "brightness", "contrast", "saturation"),
    *("area", "aspect", "box_down", "box_right"),
    *("erasing", "erased_area", "erased_aspect", "erased_down", "erased_right"),
    *("mixing", "share", "cut_down", "cut_right"),
)
DRAWS = FIRST_DRAWS + MORE_DRAWS
SHARED = [DRAWS.index(name) for name in ("horizontal_flip", "crop_down", "crop_right")]  # by `augment.together` images in a row


def by_name(draws: Tensor) -> dict[str, Tensor]:
    """Return the columns of random numbers, N x len(`DRAWS`), by name."""
    return dict(zip(DRAWS, draws.unbind(1), strict=True))


def training_input(images: Tensor, draws: Tensor, preprocessing: Preprocessing, changes: Augment) -> Tensor:
    """Augment and preprocess a batch for the network: N S S 3, uint8 or float32 -> N 3 I I float32, channels last in memory.

    `draws` are N x len(`DRAWS`) float32 in main memory, from 0 up to 1; `auto` in `changes` is resolved. If they mix images,
    there is one image more than results: each is mixed with the next. Nothing is read from the images' device.
    """
    rng = by_name(send(draws, images.device))
    x = trivial(images, by_name(draws)) if changes.trivial is True else images
    x = _colours(x, rng, changes)
    x = standardize(x, preprocessing)
    x = _affine(x, rng, changes)
    x = _shift_crop_flip(x, rng, changes, preprocessing.crop)
    if changes.area == (1, 1):
        x = normalize(x, preprocessing)
    else:
        x = resample(scale_levels(x, preprocessing), boxes(rng, changes, x.shape[1]), preprocessing.resized)
    x = _colour_noise(x, draws, changes, preprocessing) if changes.colour_noise else x
    x = erase(x, rng, changes.erasing) if changes.erasing else x
    return mix(x, mixture(by_name(draws[:-1]), changes, x.shape[2])) if changes.mixes else x


def boxes(rng: Mapping[str, Tensor], changes: Augment, side: int) -> Tensor:
    """Draw the part of each image of `side` x `side` pixels that is shown: (top, left, height, width) in pixels, N 4 float32.

    Area and position are uniform, and so is the logarithm of the aspect ratio, among those of which the part fits inside.
    """
    low, high = changes.area
    area = low + rng["area"] * (high - low)
    limit = (-area.log()).clamp_max(math.log(changes.aspect))
    stretch = ((rng["aspect"] * 2 - 1) * limit / 2).exp()
    height, width = ((area.sqrt() * factor).clamp_max(1) for factor in (1 / stretch, stretch))
    return torch.stack((rng["box_down"] * (1 - height), rng["box_right"] * (1 - width), height, width), 1) * side


def _colours(x: Tensor, rng: Mapping[str, Tensor], changes: Augment) -> Tensor:
    for name, change in (("brightness", brighten), ("contrast", contrast), ("saturation", saturate)):
        if limit := getattr(changes, name):
            x = change(x.float(), 1 + limit * (rng[name] * 2 - 1))
    return x


def _affine(images: Tensor, rng: Mapping[str, Tensor], changes: Augment) -> Tensor:
    low, high = changes.zoom
    pixels = changes.translation * images.shape[1]
    if not (changes.rotation or pixels or changes.shear or low != 1 or high != 1):
        return images
    limits = {"rotation": changes.rotation, "translation_down": pixels, "translation_right": pixels, "shear": changes.shear}
    rotation, down, right, shear = ((rng[name] * 2 - 1) * limit for name, limit in limits.items())
    zoom_down, zoom_right = (low + rng[name] * (high - low) for name in ("zoom_down", "zoom_right"))
    return affine(images, rotation, down, right, shear, zoom_down, zoom_right)


def _shift_crop_flip(images: Tensor, rng: Mapping[str, Tensor], changes: Augment, crop: int | None) -> Tensor:
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


def _colour_noise(images: Tensor, draws: Tensor, changes: Augment, preprocessing: Preprocessing) -> Tensor:
    """Add noise along the principal components of RGB, one per image (paper, section 4.1; 2012 source, convdata_jpeg.py).

    `colour_axes` are in units of pixel values from 0 to 1. The uniform `draws` are mapped to a normal distribution.
    """
    axes = torch.tensor(changes.colour_axes) * preprocessing.value_range
    if not isinstance(preprocessing.std, str):
        axes = axes / torch.tensor(preprocessing.std)
    uniform = draws[:, [DRAWS.index(name) for name in ("red", "green", "blue")]].double()
    normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)).float()
    noise = send(normal * changes.colour_noise @ axes, images.device)
    noisy: Tensor = images + noise[:, :, None, None]
    return noisy / (1 + changes.colour_noise) if changes.colour_shrink else noisy
