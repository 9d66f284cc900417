"""Several looks at one image, whose probabilities are averaged (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from alexnet.data.preprocessing import normalize, standardize, to_input
from alexnet.recipe import Preprocessing

VIEWS = (1, 2, 10)
SHARE = 7 / 8  # of the side, for a crop where the preprocessing has none: 224 of 256


def views(images: Tensor, preprocessing: Preprocessing, count: int) -> Iterator[Tensor]:
    """Yield the network's inputs, N 3 I I float32, for a batch of images, N S S 3.

    1: the image, or its centre crop where `preprocessing` crops. 2: that and its mirror image. 10: crops at the four corners
    and in the centre, and their mirror images, as in 2012; they are `preprocessing.crop` pixels a side, or 7/8 of the image.

    Raises:
        ValueError: another `count`.
    """
    if count not in VIEWS:
        raise ValueError(f"views is {count}, but should be 1, 2 or 10")
    if count == 1:
        yield to_input(images, preprocessing)
        return
    x = standardize(images, preprocessing)
    side = x.shape[1]
    size = preprocessing.crop or (round(side * SHARE) if count == 10 else side)
    end = side - size
    corners = [(0, 0), (0, end), (end, 0), (end, end)] if count == 10 else []
    for top, left in [*corners, (end // 2, end // 2)]:
        crop = x[:, top : top + size, left : left + size]
        yield normalize(crop, preprocessing)
        yield normalize(crop.flip(2), preprocessing)
