"""A dataset ready for training or evaluation: its images are decoded and split, unreadable ones are left out."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.batches import SplitImages
from alexnet.data.cache import Where, header_sizes, open_cache
from alexnet.data.near_duplicates import look_alikes
from alexnet.data.on_demand import OnDemand
from alexnet.data.pixels import DecodedImages
from alexnet.data.splits import joins_look_alikes, split
from alexnet.data.table import Table
from alexnet.network.variants import VARIANTS, Drop
from alexnet.progress import say
from alexnet.recipe import Data, Preprocessing, Recipe

UPSCALE = 4  # of small images: the stride of the first layer, which then computes on the small images (fast/fuse.py)
SMALL, LARGE = 128, 227  # pixels, for `images.input = "auto"`: 227 is the size for which AlexNet was made
# Epochs at `LARGE` pixels from which that size, and at that size TrivialAugment and dropout, are better (docs/log.md).
LARGE_EPOCHS, TRIVIAL_EPOCHS, DROPOUT_EPOCHS = 15, 40, 150
# Without `train.minutes`, every machine takes the same size: `LARGE` if these epochs, at the images per second of two cores
# without bfloat16, fit into these minutes.
UNLIMITED_EPOCHS, RATE, UNLIMITED_MINUTES = 30, 50.0, 15


@dataclass(frozen=True, eq=False)
class Dataset:
    """A `table` of the readable images, their `pixels` in the same order, and the SHA-256 of those."""

    table: Table
    pixels: DecodedImages
    sha256: str = ""

    def images(self, name: str) -> SplitImages:
        """Return the images of a split, or of `all` splits."""
        rows = self._rows(name)
        return SplitImages(self.pixels, rows, self.table.targets[rows])

    def fingerprint(self) -> dict[str, Any]:
        """Return the number of images and the SHA-256 of their listing and pixels, to detect a changed dataset."""
        table = self.table
        listing = json.dumps([list(table.images), table.labels, table.targets.tolist(), table.splits.tolist()])
        return {"images": len(table), "listing": hashlib.sha256(listing.encode()).hexdigest(), "digests": self.sha256}

    def names(self, name: str) -> list[str]:
        """Return the names of the images of a split, or of `all` splits, in the order of `images`."""
        return [self.table.images[i] for i in self._rows(name)]

    def _rows(self, name: str) -> NDArray[np.int64]:
        return np.arange(len(self.table)) if name == "all" else self.table.rows(name)


def open_dataset(
    table: Table,
    preprocessing: Preprocessing,
    workers: int,
    data: Data | None,
    *,
    train: bool = True,
    cache: Where = "disk",
) -> Dataset:
    """Decode the images of `table` and split them as `data` says; without `data`, keep the splits of the table.

    With `train`, check that the dataset can be trained on; without, one class or one split is enough. `cache` is as for
    `open_cache`.
    """
    cached = open_cache(table, preprocessing, workers, cache)
    readable = table.select(cached.rows, cached.skipped)
    if data is not None:
        alike = []
        if joins_look_alikes(readable, data) and isinstance(cached.pixels, OnDemand):
            say(f"{table.name}: near-duplicates are not kept in one split, as images are decoded later")
        elif joins_look_alikes(readable, data):
            alike = look_alikes(readable, cached.thumbnails())
        readable = split(readable, data, alike, train=train)
    return Dataset(readable, cached.pixels, cached.sha256)


def resolve(recipe: Recipe, table: Table, rate: Callable[[], float] = lambda: RATE) -> Recipe:
    """Resolve `auto` in `images`, `augment` and `model` from the dataset, and from the time there is.

    `rate` returns how many images of `LARGE` pixels the machine trains on per second; it is called at most once.
    """
    images, flip, changes, rate = recipe.images, recipe.augment.horizontal_flip, dict[str, object](), cache(rate)
    side, size = images.cache_size, images.input
    if "auto" in (side, size):
        sides = [min(size) for size in header_sizes(table, recipe.data.workers)]
        median = int(np.median(sides)) if sides else None
        if size == "auto":
            large = median is not None and median > SMALL and _few(recipe, table, rate)
            changes["images.input"] = size = LARGE if large else SMALL
        if side == "auto":  # the median shorter side, but no more than the input
            largest = images.crop or size
            changes["images.cache_size"] = side = largest if median is None else min(median, largest)
    assert isinstance(size, int)
    upscale = images.upscale
    if upscale == "auto":
        fits = isinstance(side, int) and side * UPSCALE <= size and size % UPSCALE == 0
        changes["images.upscale"] = upscale = UPSCALE if fits else 1
    if flip == "auto":
        changes["augment.horizontal_flip"] = flip = table.mirror
    photos = size >= LARGE and upscale == 1
    if recipe.augment.trivial == "auto":
        changes["augment.trivial"] = photos and flip is True and _epochs(recipe, table, rate) >= TRIVIAL_EPOCHS
    if recipe.model.dropout == "auto":
        variant = VARIANTS[recipe.model.variant]
        suits = photos and Drop in map(type, variant.layers) and _epochs(recipe, table, rate) >= DROPOUT_EPOCHS
        changes["model.dropout"] = variant.dropout if suits else 0.0
    if images.views == "auto":
        changes["images.views"] = 2 if flip and upscale > 1 else 1
    return recipe.with_settings(changes)


def _few(recipe: Recipe, table: Table, rate: Callable[[], float]) -> bool:
    """Return whether there is time for enough epochs at `LARGE` pixels."""
    if recipe.train.minutes:
        return _epochs(recipe, table, rate) >= LARGE_EPOCHS
    return _training_images(recipe, table) * UNLIMITED_EPOCHS <= RATE * 60 * UNLIMITED_MINUTES


def _epochs(recipe: Recipe, table: Table, rate: Callable[[], float]) -> float:
    """Return the number of epochs at `LARGE` pixels, about: those there is time for, or those of the recipe."""
    train, images = recipe.train, max(1.0, _training_images(recipe, table))
    if train.minutes:
        return rate() * 60 * train.minutes / images
    return min(train.epochs, train.max_images / images if train.max_images else train.epochs)


def _training_images(recipe: Recipe, table: Table) -> float:
    """Return the number of training images, about."""
    share = 1.0 if (table.splits != "").any() else 1 - recipe.data.validation - recipe.data.test
    return share * int(np.isin(table.splits, ["", "train"]).sum())
