"""Test-time views of an image, whose probabilities are averaged (paper, section 4.1)."""

import math
from collections.abc import Iterator

from torch import Tensor

from alexnet.data.preprocessing import normalize, standardize, to_input
from alexnet.recipe import Preprocessing

VIEWS = (1, 2, 10)
CROP_RATIO = 7 / 8  # of the side, if the preprocessing has no crop: 224 of 256


def views(images: Tensor, preprocessing: Preprocessing, count: int) -> Iterator[Tensor]:
    """Yield `count` inputs of the network, N 3 I I float32, for a batch of images, N S S 3.

    1: the image, or its centre crop if `preprocessing` crops. 2: also its mirror image. 10: crops of the four corners and the
    centre, and their mirror images, as in 2012; the side of a crop is `preprocessing.crop` pixels, or 7/8 of the image's.
    """
    if count not in VIEWS:
        raise ValueError(f"views is {count}, but should be 1, 2 or 10")
    if count == 1:
        yield to_input(images, preprocessing)
        return
    x = standardize(images, preprocessing)
    side = x.shape[1]
    size = preprocessing.crop or (round(side * CROP_RATIO) if count == 10 else side)
    end = side - size
    corners = [(0, 0), (0, end), (end, 0), (end, end)] if count == 10 else []
    for top, left in [*corners, (end // 2, end // 2)]:
        crop = x[:, top : top + size, left : left + size]
        yield normalize(crop, preprocessing)
        yield normalize(crop.flip(2), preprocessing)


def average(logits: Tensor) -> Tensor:
    """Return the logarithms of the mean probabilities, N x classes, of views x N x classes logits; of one view, its logits.

    They are averaged in log space, as a probability that rounds to 0 would have an infinite loss.
    """
    return logits[0] if len(logits) == 1 else logits.log_softmax(2).logsumexp(0) - math.log(len(logits))
