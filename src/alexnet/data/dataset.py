"""A dataset ready for training or evaluation: its images are decoded and split, unreadable ones are left out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexnet.data.batches import SplitImages
from alexnet.data.cache import Pixels, header_sizes, open_cache
from alexnet.data.splits import split
from alexnet.data.table import Table
from alexnet.recipe import Data, Preprocessing, Recipe

UPSCALE = 4  # of small images: the stride of the first layer, which then computes on the small images (fast/fuse.py)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A `table` of the readable images, their `pixels` in the same order, and the SHA-256 of those."""

    table: Table
    pixels: Pixels
    sha256: str = ""

    def images(self, name: str) -> SplitImages:
        """Return the images of a split, or of `all` splits."""
        rows = np.arange(len(self.table)) if name == "all" else self.table.rows(name)
        return SplitImages(self.pixels, rows, self.table.targets[rows])

    def fingerprint(self) -> dict[str, Any]:
        """Return the number of images and the SHA-256 of their listing and pixels, to detect a changed dataset."""
        table = self.table
        listing = json.dumps([list(table.images), table.labels, table.targets.tolist(), table.splits.tolist()])
        return {"images": len(table), "listing": hashlib.sha256(listing.encode()).hexdigest(), "pixels": self.sha256}

    def names(self, name: str) -> list[str]:
        """Return the names of the images of a split, or of `all` splits, in the order of `images`."""
        rows = range(len(self.table)) if name == "all" else self.table.rows(name)
        return [self.table.images[i] for i in rows]


def open_dataset(table: Table, preprocessing: Preprocessing, workers: int, data: Data | None, *, train: bool = True) -> Dataset:
    """Decode the images of `table` and split them as `data` says; without `data`, keep the splits of the table.

    With `train`, check that the dataset can be trained on; without, one class or one split is enough.
    """
    cache = open_cache(table, preprocessing, workers)
    readable = table.select(cache.rows, cache.skipped)
    if data is not None:
        readable = split(readable, data, train=train)
    return Dataset(readable, cache.pixels, cache.sha256)


def resolve(recipe: Recipe, table: Table) -> Recipe:
    """Resolve `auto` in `images.cache_size`, `images.upscale` and `augment.horizontal_flip` from the dataset."""
    changes: dict[str, object] = {}
    images = recipe.images
    if "auto" in (images.cache_size, images.upscale):
        input_size = images.crop or images.input
        side = (
            min(_side(table, recipe.data.workers) or input_size, input_size)
            if images.cache_size == "auto"
            else images.cache_size
        )
        if images.upscale == "auto":
            fits = side != "full" and side * UPSCALE <= images.input and images.input % UPSCALE == 0
            changes["images.upscale"] = UPSCALE if fits else 1
        changes["images.cache_size"] = side
    if recipe.augment.horizontal_flip == "auto":
        changes["augment.horizontal_flip"] = table.mirror
    return recipe.with_settings(changes)


def _side(table: Table, workers: int) -> int | None:
    """Return the median shorter side of the images, in pixels; None if no image is readable."""
    sizes = header_sizes(table, workers)
    return int(np.median([min(size) for size in sizes])) if sizes else None
