"""TrivialAugment (Müller and Hutter 2021): one operation on each image, both it and its strength drawn uniformly.

The operations are those of its wide search space that treat each image of a batch alike: sharpness, autocontrast and
equalisation, which do not, are left out.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from alexnet.data.colour import brighten, contrast, posterize, saturate, solarize
from alexnet.data.geometry import warp
from alexnet.network.device import send

# At full strength (torchvision's TrivialAugmentWide; there a shift is 32 pixels of 224).
FACTOR, BITS, DEGREES, SHEAR, SHIFT = 0.99, 6, 135.0, 0.99, 1 / 7


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    sine, cosine = (turn := strength * math.radians(DEGREES)).sin(), turn.cos()
    zero = torch.zeros_like(turn)
    return warp(images, torch.stack((cosine, sine, zero, -sine, cosine, zero), 1).view(-1, 2, 3))


def _move(row: int, column: int, limit: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return an operation that adds to one place of the identity map, up to `limit`, a fraction of the side in a shift."""

    def operation(images: Tensor, strength: Tensor) -> Tensor:
        transforms = send(torch.eye(2, 3), images.device).repeat(len(images), 1, 1)
        transforms[:, row, column] += strength * limit * (images.shape[1] if column == 2 else 1)
        return warp(images, transforms)

    return operation


# From images and their signed strengths, up to 1, to the changed images.
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda images, _: images,
    "brightness": lambda images, strength: brighten(images, 1 + FACTOR * strength),
    "contrast": lambda images, strength: contrast(images, 1 + FACTOR * strength),
    "saturation": lambda images, strength: saturate(images, 1 + FACTOR * strength),
    "posterize": lambda images, strength: posterize(images, 8 - (BITS * strength.abs()).round()),
    "solarize": lambda images, strength: solarize(images, 255 * (1 - strength.abs())),
    "rotation": _rotate,
    "shear_down": _move(0, 1, SHEAR),
    "shear_right": _move(1, 0, SHEAR),
    "shift_down": _move(0, 2, SHIFT),
    "shift_right": _move(1, 2, SHIFT),
}


def trivial(images: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """Change each image by one of `OPERATIONS`: N S S 3, uint8 or float32, levels 0 to 255 -> N S S 3 float32.

    The uniform numbers `operation`, `strength` and `direction` of `draws` have a value per image, in main memory: each
    operation computes the images that have it.
    """
    x = torch.empty_like(images, dtype=torch.float32)
    chosen = (draws["operation"] * len(OPERATIONS)).long().clamp_max(len(OPERATIONS) - 1)
    strength = torch.where(draws["direction"] < 0.5, -draws["strength"], draws["strength"])
    for number, operation in enumerate(OPERATIONS.values()):
        rows = (chosen == number).nonzero().flatten()
        if len(rows):
            where = send(rows, x.device)
            x.index_copy_(0, where, operation(images.index_select(0, where).float(), send(strength[rows], x.device)))
    return x
