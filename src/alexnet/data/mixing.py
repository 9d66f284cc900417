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

    def contain(self, side: int) -> Tensor:
        """Return which pixels of `side` x `side` are inside, N 1 `side` `side` bool."""
        at = torch.arange(side, device=self.top.device)
        rows, columns = (
            (at >= first[:, None]) & (at < end[:, None]) for first, end in ((self.top, self.bottom), (self.left, self.right))
        )
        return (rows[:, :, None] & columns[:, None, :])[:, None]


def erase(x: Tensor, rng: Mapping[str, Tensor], share: float) -> Tensor:
    """Set a random rectangle to 0, the mean, in a `share` of the images N 3 I I, as torchvision's `RandomErasing` does."""
    inside = erased(rng, x.shape[2]).contain(x.shape[2]) & (rng["erasing"] < share)[:, None, None, None]
    return x.masked_fill(inside, 0)


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
    cut, share = (send(values, x.device)[:, None, None, None] for values in (how.cut, how.share))
    rectangles = Rectangles(*(send(edge, x.device) for edge in how.rectangles))
    own = torch.where(cut, (~rectangles.contain(x.shape[2])).to(share.dtype), share)  # the weight of the image itself
    return torch.lerp(x[1:], x[:-1], own)


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
