"""Compute the statistics that a recipe asks for: mean, standard deviation, mean image, principal components of RGB."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.batches import SplitImages
from alexnet.progress import track
from alexnet.recipe import Recipe

SAMPLE = 5000  # images for statistics per channel; `one` and mean images use all images, as the tutorials do
CHUNK = 64  # images at a time


class Statistics:
    """Statistics of pixel values from 0 to 1.

    `mean_image` is S S 3, `mean` and `std` are per channel, `covariance` and `products` (means of products) of two channels.
    """

    def __init__(self, mean_image: NDArray[np.float64], products: NDArray[np.float64]) -> None:
        self.mean_image, self.products = mean_image, products
        self.mean = mean_image.mean((0, 1))
        self.covariance = products - np.outer(self.mean, self.mean)
        self.std = np.sqrt(np.diag(self.covariance).clip(0))


def compute_statistics(images: SplitImages) -> Statistics:
    """Compute the statistics of all images in one pass, with progress."""
    side = images.pixels.preprocessing.side
    total, products = np.zeros((side, side, 3)), np.zeros((3, 3))
    starts = range(0, len(images), CHUNK)
    for start in track(starts, "Computing statistics", len(starts)):
        x = images.pixels.take(images.rows[start : start + CHUNK]).astype(np.float64) / 255
        total += x.sum(0)
        flat = x.reshape(-1, 3)
        products += flat.T @ flat / (side * side)
    return Statistics(total / len(images), products / len(images))


def fill_statistics(recipe: Recipe, train: SplitImages) -> tuple[Recipe, NDArray[np.float32] | None]:
    """Fill in the settings that depend on the training images; return the recipe, and the mean image if it asks for one.

    These are `images.mean`, `images.std`, `augment.colour_axes`, `train.batch_size`, and `train.epochs` if `train.max_images`
    limits it. Statistics are in units of `images.value_range`; the mean image, S S 3 float32, is in grey levels.
    """
    images, changes = recipe.images, dict[str, Any]()
    if recipe.train.batch_size == "auto":
        changes["train.batch_size"] = min(max(32, len(train) // 20), 256)
    if recipe.train.max_images:
        changes["train.epochs"] = min(recipe.train.epochs, max(1, round(recipe.train.max_images / len(train))))
    noises = (recipe.augment.colour_noise, *(row.colour_noise for row in recipe.schedule.table))
    noisy = any(noises) and isinstance(recipe.augment.colour_axes, str)
    unresolved = {images.mean, images.std} & {"channels", "one", "image", "image-centre"}
    if not unresolved and not noisy:
        return recipe.with_settings(changes), None
    sample = train if unresolved - {"channels"} else train.subset(slice(None, None, max(1, len(train) // SAMPLE)))
    result = compute_statistics(sample)
    if images.mean == "channels":
        changes["images.mean"] = tuple((result.mean * images.value_range).round(4).tolist())
    if images.std == "channels":  # at least 1e-3, for images of one colour
        changes["images.std"] = tuple((result.std.clip(1e-3) * images.value_range).round(4).tolist())
    if images.mean == "one":
        changes["images.mean"] = float(result.mean.mean() * images.value_range)
    if images.std == "one":
        spread = np.diag(result.products).mean() - result.mean.mean() ** 2
        changes["images.std"] = float(max(1e-3, np.sqrt(max(0.0, spread))) * images.value_range)
    if noisy:
        variances, vectors = np.linalg.eigh(result.covariance)  # the principal components of RGB
        lengths = variances if recipe.augment.colour_axes == "variances" else np.sqrt(variances.clip(0))
        changes["augment.colour_axes"] = (vectors * lengths).T.tolist()
    mean_image = (result.mean_image * 255).astype(np.float32) if images.mean in ("image", "image-centre") else None
    return recipe.with_settings(changes), mean_image
