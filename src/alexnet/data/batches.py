"""Batches of an epoch: shuffled, with their chance numbers, prepared ahead by a few threads.

Order and draws come from (seed, epoch) alone, so the batches are the same for any number of workers and an epoch can be
taken up in the middle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.data.augment import DRAWS, SHARED
from alexnet.data.cache import Pixels
from alexnet.errors import RecipeError
from alexnet.recipe import Train


@dataclass(frozen=True)
class Batch:
    """`images` N S S 3 uint8 or float32, `targets` N int64, `draws` N x len(DRAWS) float32 (None: nothing is random)."""

    images: Tensor
    targets: Tensor
    draws: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SplitImages:
    """The images of one split: `rows` of the cached `pixels` and their `targets`, one a row."""

    pixels: Pixels
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, part: slice) -> SplitImages:
        """Return those at the positions of `part`."""
        return SplitImages(self.pixels, self.rows[part], self.targets[part])

    def take(self, order: NDArray[np.int64], draws: NDArray[np.float32] | None = None) -> Batch:
        """Return the images at the positions `order` as a batch."""
        images = torch.from_numpy(self.pixels.take(self.rows[order]))
        return Batch(images, torch.from_numpy(self.targets[order]), None if draws is None else torch.from_numpy(draws))


def batch_bounds(count: int, size: int, last: Literal["even", "short", "drop"] = "even") -> list[tuple[int, int]]:
    """Cut `count` images into batches of at most `size`: (start, end) of each.

    `even`: the fewest, as even as can be, so that no image is dropped and no short last batch upsets batch normalisation.
    `short`: all of `size` but the last, which has the rest. `drop`: without that rest.
    """
    if last != "even":
        full = range(0, count - size + 1 if last == "drop" else count, size)
        return [(start, min(start + size, count)) for start in full]
    number = -(-count // size)
    edges = [i * count // number for i in range(number + 1)] if number else []
    return list(pairwise(edges))


def epoch_bounds(count: int, train: Train) -> list[tuple[int, int]]:
    """Cut an epoch of `count` images into batches, as a resolved recipe says.

    Raises:
        RecipeError: no batch is left.
    """
    assert isinstance(train.batch_size, int)  # resolved
    cuts = batch_bounds(count, train.batch_size, train.last_batch)
    if not cuts:
        raise RecipeError(f"train.batch_size is {train.batch_size}, but {count} images train, and short ones drop")
    return cuts


def shard_bounds(cuts: Sequence[tuple[int, int]], rank: int, world: int) -> list[tuple[int, int]]:
    """Return the part of each batch that process `rank` of `world` takes; together they take all, as evenly as can be."""
    return [(start + (end - start) * rank // world, start + (end - start) * (rank + 1) // world) for start, end in cuts]


def epoch_batches(
    images: SplitImages,
    cuts: Sequence[tuple[int, int]],
    seed: int,
    epoch: int,
    start: int = 0,
    workers: int = 1,
    together: int = 1,
    alternate: bool = False,
) -> Iterator[Batch]:
    """Yield the shuffled batches of an epoch, cut as `batch_bounds` does, from batch `start` on.

    `together` images in a row share the draws of their crop and mirror (2012 source, convdata_jpeg.py, `crop_chunk`). With
    `alternate`, an image that is mirrored in one epoch is not in the next.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(images))
    draws = rng.random((len(images), len(DRAWS)), dtype=np.float32)
    first = np.arange(len(images)) // together * together
    draws[:, SHARED] = draws[first][:, SHARED]
    if alternate:
        once = np.random.default_rng(seed).random(len(images), dtype=np.float32)  # by image, whatever the epoch
        draws[:, DRAWS.index("horizontal_flip")] = (once[order] + epoch / 2) % 1
    yield from _ahead(images, [(order[a:b], draws[a:b]) for a, b in cuts[start:]], workers)


def ordered_batches(images: SplitImages, size: int, workers: int = 1) -> Iterator[Batch]:
    """Yield all images once, in their order."""
    yield from _ahead(images, [(np.arange(a, b), None) for a, b in batch_bounds(len(images), size)], workers)


def _ahead(
    images: SplitImages, cuts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32] | None]], workers: int
) -> Iterator[Batch]:
    """Yield a batch for each cut, in order, with a few prepared ahead by `workers` threads."""
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for cut in cuts:
            waiting.append(pool.submit(images.take, *cut))
            if len(waiting) > workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
