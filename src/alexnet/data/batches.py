"""Batches of an epoch: shuffled, with random numbers for augmentation, prefetched by a few threads.

Order and random numbers depend only on (seed, epoch), so batches do not depend on the number of workers, and an epoch can be
resumed in the middle.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.data.augment import DRAWS, FIRST_DRAWS, MORE_DRAWS, SHARED
from alexnet.data.decode_pool import map_ahead
from alexnet.data.pixels import DecodedImages
from alexnet.errors import RecipeError, counted
from alexnet.recipe import Train


@dataclass(frozen=True)
class Batch:
    """`images` N S S 3 uint8 or float32, `targets` N int64, `draws` N x len(DRAWS) float32 (None: no augmentation).

    If images are mixed, each with the next, there is one more than the batch trains on.
    """

    images: Tensor
    targets: Tensor
    draws: Tensor | None = None

    def pinned(self) -> Self:
        """Return a copy in memory that a GPU reads by itself, so that nothing waits for it."""
        draws = None if self.draws is None else self.draws.pin_memory()
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory(), draws=draws)


@dataclass(frozen=True, eq=False)
class SplitImages:
    """The images of one split: `rows` of the `pixels`, and their `targets`."""

    pixels: DecodedImages
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, part: slice | NDArray[np.int64]) -> Self:
        """Return the images at the positions of `part`."""
        return replace(self, rows=self.rows[part], targets=self.targets[part])

    def take(self, order: NDArray[np.int64], draws: NDArray[np.float32] | None = None) -> Batch:
        """Return the images at the positions `order` as a batch."""
        images = torch.from_numpy(self.pixels.take(self.rows[order]))
        return Batch(images, torch.from_numpy(self.targets[order]), None if draws is None else torch.from_numpy(draws))


class Images(Protocol):
    """What batches are taken from: `SplitImages`, or what a network makes of them."""

    def __len__(self) -> int: ...

    def take(self, order: NDArray[np.int64], draws: NDArray[np.float32] | None = None) -> Batch: ...  # noqa: D102


def batch_bounds(count: int, size: int, last: Literal["even", "short", "drop"] = "even") -> list[tuple[int, int]]:
    """Divide `count` images into batches of at most `size`; return (start, end) of each.

    `even`: as few batches as possible, of equal size up to one image, as a short last batch disturbs batch normalisation.
    `short`: the last batch has the remainder. `drop`: the remainder is dropped.
    """
    if last != "even":
        full = range(0, count - size + 1 if last == "drop" else count, size)
        return [(start, min(start + size, count)) for start in full]
    number = -(-count // size)
    edges = [i * count // number for i in range(number + 1)] if number else []
    return list(pairwise(edges))


def epoch_bounds(count: int, train: Train) -> list[tuple[int, int]]:
    """Divide an epoch of `count` images into batches, as `[train]` of a resolved recipe says."""
    assert isinstance(train.batch_size, int)  # resolved
    bounds = batch_bounds(count, train.batch_size, train.last_batch)
    if not bounds:
        raise RecipeError(f"train.batch_size is {train.batch_size}, but training has only {counted(count, 'image')}: lower it")
    return bounds


def shard_bounds(bounds: Sequence[tuple[int, int]], rank: int, world: int) -> list[tuple[int, int]]:
    """Return the part of each batch for process `rank` of `world`, all parts of equal size up to one image."""
    return [(start + (end - start) * rank // world, start + (end - start) * (rank + 1) // world) for start, end in bounds]


def epoch_batches(
    images: Images,
    bounds: Sequence[tuple[int, int]],
    seed: int,
    epoch: int,
    start: int = 0,
    workers: int = 1,
    together: int = 1,
    alternate: bool = False,
    mixed: bool = False,
    pinned: bool = False,
) -> Iterator[Batch]:
    """Yield the shuffled batches of an epoch, within `bounds`, from batch `start` on.

    `together` successive images share the random numbers of crop and flip (2012 source, convdata_jpeg.py, `crop_chunk`). With
    `alternate`, an image is flipped every other epoch. With `mixed`, the image after the last one of a batch comes with it.
    With `pinned`, batches are in pinned memory.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(images))
    numbers = (rng, FIRST_DRAWS), (np.random.default_rng([seed, epoch, 1]), MORE_DRAWS)
    draws = np.hstack([rng.random((len(images), len(names)), dtype=np.float32) for rng, names in numbers])
    first = np.arange(len(images)) // together * together
    draws[:, SHARED] = draws[first][:, SHARED]
    if alternate:
        fixed = np.random.default_rng(seed).random(len(images), dtype=np.float32)  # per image, the same in all epochs
        draws[:, DRAWS.index("horizontal_flip")] = (fixed[order] + epoch / 2) % 1

    def batch(ends: tuple[int, int]) -> Batch:
        rows = np.arange(ends[0], ends[1] + mixed) % len(images)
        taken = images.take(order[rows], draws[rows])
        return taken.pinned() if pinned else taken

    return map_ahead(batch, bounds[start:], workers, workers + 1)


def ordered_batches(images: SplitImages, size: int, workers: int = 1) -> Iterator[Batch]:
    """Yield batches of all images, in order."""
    return map_ahead(lambda ends: images.take(np.arange(*ends)), batch_bounds(len(images), size), workers, workers + 1)
