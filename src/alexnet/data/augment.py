"""Random changes of training images, a whole uint8 batch at a time, on its device.

Chance comes in as numbers: each image has a row of `COLUMNS` uniform draws, made with the epoch's order from (seed, epoch)
alone. So the result does not depend on the device, on the number of workers, or on where an epoch was taken up again.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLUMNS = 3  # draws for an image: shift down, shift right, mirror


def augment(images: Tensor, draws: Tensor, *, shift: float, mirror: bool) -> Tensor:
    """Shift each image by up to `shift` of its side each way, the border reflected, and mirror every second one.

    Args:
        images: N S S 3 uint8.
        draws: N x `COLUMNS` float32, from 0 up to 1.
        shift: share of the side, 0 to 0.5.
        mirror: whether to mirror.

    Returns:
        N S S 3 uint8.
    """
    reach = round(images.shape[1] * shift)
    if not reach and not mirror:
        return images
    offsets = (draws[:, :2] * (2 * reach + 1)).long().clamp_max(2 * reach) - reach  # N x 2, -reach to reach
    flip = (draws[:, 2] < 0.5) if mirror else torch.zeros_like(draws[:, 2], dtype=torch.bool)
    rows = _positions(images.shape[1], offsets[:, 0])
    columns = _positions(images.shape[2], offsets[:, 1])
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    image = torch.arange(len(images), device=images.device)
    return images[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def _positions(side: int, offset: Tensor) -> Tensor:
    """Return N x side: where each pixel of the shifted image comes from, reflected at the border without repeating it."""
    at = (torch.arange(side, device=offset.device)[None, :] + offset[:, None]).abs()
    return torch.where(at > side - 1, 2 * (side - 1) - at, at)
