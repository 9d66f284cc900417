"""A dataset ready to train or evaluate on: decoded, without what could not be read, every image in a split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet.data.batches import Images
from alexnet.data.cache import open_cache
from alexnet.data.images import Preprocessing, typical_side
from alexnet.data.splits import split
from alexnet.data.table import Table
from alexnet.recipe import Data, Recipe

SAMPLE = 5000  # images that the channels' mean and deviation are taken from


@dataclass(frozen=True, eq=False)
class Dataset:
    """`table` lists the readable images; `cached` (N S S 3 uint8) holds them in the same order."""

    table: Table
    cached: NDArray[np.uint8]

    def images(self, name: str) -> Images:
        """Return the images of a split, or of all splits (`all`), as batches take them."""
        rows = np.arange(len(self.table)) if name == "all" else self.table.rows(name)
        return Images(self.cached, rows, self.table.targets[rows])

    def names(self, name: str) -> list[str]:
        """Return the names of the images of a split (or `all`), in the same order."""
        rows = range(len(self.table)) if name == "all" else self.table.rows(name)
        return [self.table.images[i] for i in rows]


def open_dataset(table: Table, how: Preprocessing, workers: int, data: Data | None) -> Dataset:
    """Decode the table's images and split them as `data` says; without `data` they keep the splits they have.

    Raises:
        DataError: nothing readable, too few images, splits whose labels differ.
    """
    cache = open_cache(table, how, workers)
    readable = table.select(cache.rows, cache.skipped)
    if data is not None:
        readable = split(readable, data.validation, data.test, data.split_seed)
    return Dataset(readable, cache.pixels)


def resolve(recipe: Recipe, table: Table) -> Recipe:
    """Return the recipe with what it leaves to the dataset filled in: `images.stored` and `augment.mirror`."""
    changes: dict[str, object] = {}
    if recipe.images.stored == "auto":
        if table.pixels is not None:
            side: int | None = min(table.pixels.shape[1:3])
        else:
            sample = range(0, len(table), max(1, len(table) // 200))
            side = typical_side(source for i in sample if isinstance(source := table.source(i), Path))
        changes["images.stored"] = min(side or recipe.images.input, recipe.images.input)
    if recipe.augment.mirror == "auto":
        changes["augment.mirror"] = table.mirror
    return recipe.with_settings(changes)


def measure(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return the recipe with what it leaves to the training images filled in.

    `images.mean` and `images.deviation` of each channel, over up to 5,000 training images, and `train.epochs` where
    `train.max_images` allows fewer.
    """
    train = dataset.images("train")
    sample = train.rows[:: max(1, len(train) // SAMPLE)]
    values = dataset.cached[sample].reshape(-1, 3)
    mean, deviation = values.mean(0, dtype=np.float64) / 255, values.std(0, dtype=np.float64) / 255
    changes: dict[str, object] = {}
    if recipe.images.mean == "dataset":
        changes["images.mean"] = tuple(mean.round(4).tolist())
    if recipe.images.deviation == "dataset":
        changes["images.deviation"] = tuple(deviation.round(4).clip(1e-3).tolist())  # images of one colour have none
    if recipe.train.max_images:
        changes["train.epochs"] = min(recipe.train.epochs, max(1, round(recipe.train.max_images / len(train))))
    return recipe.with_settings(changes)


def preprocessing(recipe: Recipe) -> Preprocessing:
    """Return the preprocessing of a recipe whose `stored` is resolved; mean and deviation as far as they are."""
    settings = recipe.images
    known = {name: value for name in ("mean", "deviation") if (value := getattr(settings, name)) != "dataset"}
    return Preprocessing(
        **settings.model_dump(include={"stored", "input", "fit", "reduced_decode", "resize"}),
        **known,
    )
