"""Erasing a part of a network's input, and mixing inputs and their labels with those of other images.

An image is mixed with the next one of its epoch's order. So a batch holds one image more than it trains on, and the result
depends neither on the batch nor on the process.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from alexnet.network.device import send
from alexnet.recipe import Augment

# Of an erased rectangle: its area as a fraction of the image's, and height / width (Zhong and others 2017; torchvision).
ERASED_AREA, ERASED_ASPECT = (0.02, 0.33), (0.3, 3.3)  # the logarithm of the latter is uniform


class Rectangles(NamedTuple):
    """A rectangle in each of N images: N int64 each, in pixels."""

    top: Tensor
    left: Tensor
    bottom: Tensor
    right: Tensor

    def bands(self, side: int) -> tuple[Tensor, Tensor]:
        """Return which rows, and which columns, of `side` x `side` pixels are inside: 1 or 0, N `side` float32 each."""
        at = torch.arange(side, device=self.top.device)
        rows = (at >= self.top[:, None]) & (at < self.bottom[:, None])
        columns = (at >= self.left[:, None]) & (at < self.right[:, None])
        return rows.float(), columns.float()


def erase(x: Tensor, rng: Mapping[str, Tensor], share: float) -> Tensor:
    """Set a random rectangle to 0, the mean, in a `share` of the images N 3 I I, as torchvision's `RandomErasing` does."""
    rows, columns = erased(rng, x.shape[2]).bands(x.shape[2])
    rows, values = rows * (rng["erasing"] < share)[:, None], _in_rows(x)
    return _images(torch.addcmul(values, values * rows[:, :, None], _in_columns(columns), value=-1))


def erased(rng: Mapping[str, Tensor], side: int) -> Rectangles:
    """Return the rectangles to erase; what is longer than the image is cut to it."""
    (least, most), (low, high) = ERASED_AREA, map(math.log, ERASED_ASPECT)
    length = (least + rng["erased_area"] * (most - least)).sqrt() * side
    stretch = ((low + rng["erased_aspect"] * (high - low)) / 2).exp()
    height, width = ((length * factor).round().clamp(1, side) for factor in (stretch, 1 / stretch))
    top, left = ((rng[name] * (side - size + 1)).floor() for name, size in (("erased_down", height), ("erased_right", width)))
    return Rectangles(*(edge.long() for edge in (top, left, top + height, left + width)))


class Mixture(NamedTuple):
    """How N images are mixed with another one each: by a rectangle where `cut`, N bool, else by a weighted mean.

    `share`, N float32, is the weight of the image itself in the label, and in the mean.
    """

    cut: Tensor
    share: Tensor
    rectangles: Rectangles


def mixture(rng: Mapping[str, Tensor], changes: Augment, side: int) -> Mixture:
    """Draw how each image of `side` x `side` pixels is mixed with the next, from uniform numbers in main memory.

    The rectangle of CutMix (Yun and others 2019) has the image's proportions and a random centre, and is cut off at the
    borders; `share` is what is left outside. The weight of mixup (Zhang and others 2018) is drawn from the same distribution.
    """
    cut = rng["mixing"] < (0.0 if not changes.cutmix else 0.5 if changes.mixup else 1.0)
    share = torch.where(cut, _beta(rng["share"], changes.cutmix), _beta(rng["share"], changes.mixup))
    half = ((1 - share).sqrt() * side / 2).floor()
    down, right = ((rng[name] * side).floor() for name in ("cut_down", "cut_right"))
    edges = (down - half, right - half, down + half, right + half)
    box = Rectangles(*(edge.clamp(0, side).long() for edge in edges))
    area = (box.bottom - box.top) * (box.right - box.left)
    return Mixture(cut, torch.where(cut, 1 - area / side**2, share), box)


def mix(x: Tensor, how: Mixture) -> Tensor:
    """Mix each of the images N + 1, 3, I, I with the next: N 3 I I. `how` may be on another device."""
    rows, columns = how.rectangles.bands(x.shape[2])
    # Their product is the weight of the next image at each pixel.
    rows = send(torch.where(how.cut[:, None], rows, 1 - how.share[:, None]), x.device)
    columns = send(torch.where(how.cut[:, None], columns, 1.0), x.device)
    values = _in_rows(x)
    return _images(torch.lerp(values[:-1], values[1:], rows[:, :, None] * _in_columns(columns)))


# `erase` and `mix` treat columns and channels, which are neighbours in memory, as one dimension. With a weight for each pixel
# instead, they take twice as long.


def _in_rows(x: Tensor) -> Tensor:
    """N 3 I I, channels last in memory -> N I 3I."""
    return x.permute(0, 2, 3, 1).flatten(2)


def _in_columns(weights: Tensor) -> Tensor:
    """Return weights of columns, N I, for the values of each row: N 1 3I."""
    return weights[:, None, :, None].expand(-1, -1, -1, 3).flatten(2)


def _images(values: Tensor) -> Tensor:
    """N I 3I -> N 3 I I, channels last in memory."""
    return values.view(*values.shape[:2], -1, 3).permute(0, 3, 1, 2)


def mix_targets(targets: Tensor, how: Mixture, classes: int) -> Tensor:
    """Return the mixed targets of the same images, from N + 1 int64 to N x `classes` float32."""
    labels = one_hot(targets, classes).float()
    return torch.lerp(labels[1:], labels[:-1], how.share[:, None])


def _beta(draws: Tensor, parameter: float) -> Tensor:
    """Map uniform numbers in main memory to the Beta distribution with both parameters alike; 0: to 1."""
    if not parameter:
        return torch.ones_like(draws)
    from scipy.special import betaincinv  # PyTorch has none

    return torch.from_numpy(betaincinv(parameter, parameter, draws.double().numpy())).to(draws.dtype)
