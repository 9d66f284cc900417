"""TrivialAugment (Müller and Hutter 2021): one operation on each image, both it and its strength drawn uniformly.

The operations are those of its wide search space that treat each image of a batch alike: sharpness, autocontrast and
equalisation, which do not, are left out.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from alexnet.data.colour import brighten, contrast, posterize, saturate, solarize
from alexnet.data.geometry import warp

OPERATIONS = (
    *("identity", "brightness", "contrast", "saturation", "posterize", "solarize"),
    *("rotation", "shear_down", "shear_right", "shift_down", "shift_right"),
)
# At full strength (torchvision's TrivialAugmentWide; there a shift is 32 pixels of 224).
FACTOR, BITS, DEGREES, SHEAR, SHIFT = 0.99, 6, 135.0, 0.99, 1 / 7


def trivial(images: Tensor, rng: Mapping[str, Tensor]) -> Tensor:
    """Change each image by one of `OPERATIONS`: N S S 3, uint8 or float32, levels 0 to 255 -> N S S 3 float32.

    The uniform numbers `operation`, `strength` and `direction` of `rng` have a value per image.
    """
    chosen = (rng["operation"] * len(OPERATIONS)).floor()
    strength = rng["strength"]
    signed = torch.where(rng["direction"] < 0.5, -strength, strength)

    def where(operation: str, value: Tensor, other: float = 0.0) -> Tensor:
        return torch.where(chosen == OPERATIONS.index(operation), value, other)

    x = images.float()
    x = brighten(x, 1 + where("brightness", FACTOR * signed))
    x = contrast(x, 1 + where("contrast", FACTOR * signed))
    x = saturate(x, 1 + where("saturation", FACTOR * signed))
    x = posterize(x, 8 - where("posterize", (BITS * strength).round()))
    x = solarize(x, where("solarize", 255 * (1 - strength), 256.0))
    turn = where("rotation", signed * math.radians(DEGREES))
    down, right = (where(f"shift_{way}", signed * SHIFT * images.shape[1]) for way in ("down", "right"))
    rows = torch.stack((turn.cos(), turn.sin() + where("shear_down", SHEAR * signed), down), 1)
    columns = torch.stack((where("shear_right", SHEAR * signed) - turn.sin(), turn.cos(), right), 1)
    return warp(x, torch.stack((rows, columns), 1))
