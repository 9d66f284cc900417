"""Figures of a dataset: samples with their labels, and samples as a recipe augments them."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from alexnet.data.augment import DRAWS, training_input
from alexnet.data.batches import SplitImages
from alexnet.data.cache import header_sizes
from alexnet.data.dataset import resolve
from alexnet.data.decode_pool import Answer, decode_all
from alexnet.data.pixels import Pixels
from alexnet.data.statistics import fill_statistics
from alexnet.data.table import Table, sample_by_class
from alexnet.errors import DataError, counted, truncate
from alexnet.files import refuse_overwrite, write_output
from alexnet.fonts import legible, save
from alexnet.plotting import page_text, shorten
from alexnet.recipe import Preprocessing, Recipe

SAMPLES, COLUMNS = 24, 6  # as many columns even of fewer images, so that the title fits
AUGMENTED, DRAWS_EACH = 6, 5  # images, and augmented versions of each
TITLE_LENGTH = 80  # letters
LARGEST = 224  # pixels, the side of a sample
INCHES = 1.75  # the side of an image in the figure
WORKERS = os.cpu_count() or 1


def show_samples(table: Table, path: Path, overwrite: bool = False) -> None:
    """Draw random images of as many classes as possible, with labels and names, to a PNG file."""
    refuse_overwrite(path, overwrite)
    selected = table.select(sample_by_class(table.targets, SAMPLES))
    side = min(LARGEST, int(np.median([min(size) for size in header_sizes(selected, WORKERS)] or [1])))
    readable, pixels = _readable(selected, {"cache_size": side})
    title = f"{table.name}: {counted(len(table), 'image')} of {counted(len(table.labels), 'class')}"
    figure, grid = _grid(-(-len(readable) // COLUMNS), COLUMNS, title)
    for row, axes in enumerate(grid.flat[: len(readable)]):
        axes.imshow(pixels[row])
        _caption(axes, readable, row)
    write_output(path, partial(save, figure), overwrite)


def show_augmented(table: Table, recipe: Recipe, path: Path, overwrite: bool = False) -> None:
    """Draw random images beside what the network gets in training by `recipe`, to a PNG file; errors as for `show_samples`.

    An image is drawn as it is in several epochs, but no version of it twice.

    Means and colour components are computed from these images only, so colour noise only approximates that of a training.
    """
    refuse_overwrite(path, overwrite)
    selected = table.select(sample_by_class(table.targets, AUGMENTED))
    recipe = resolve(recipe, selected)
    preprocessing = recipe.images.resolved()
    readable, pixels = _readable(selected, preprocessing.decode_options())
    memory, shapes = np.concatenate([image.ravel() for image in pixels]), np.array([image.shape[:2] for image in pixels])
    images = SplitImages(Pixels(memory, shapes, preprocessing), np.arange(len(readable)), readable.targets)
    recipe, mean_image = fill_statistics(recipe, images)
    preprocessing = recipe.images.resolved(mean_image)
    stored = images.take(np.arange(len(readable))).images
    rng = torch.Generator().manual_seed(0)
    draws = torch.rand(len(stored), DRAWS_EACH, len(DRAWS), generator=rng)
    mixed = recipe.augment.mixes  # each image with the next
    augmented = []
    for row, each in enumerate(draws):
        rows = torch.tensor([row, row + 1] if mixed else [row]) % len(stored)
        versions = [training_input(stored[rows], one.expand(len(rows), -1), preprocessing, recipe.augment) for one in each]
        augmented.append(_different(torch.cat(versions)))
    shown = max(map(len, augmented))
    is_random = shown > 1
    title = f"{table.name} in training by the recipe {recipe.name}"
    # A row for each image, or a column if there is only one version.
    figure, grid = _grid(*((len(readable), 1 + shown) if is_random else (1 + shown, COLUMNS)), title)
    for row, cells in enumerate(grid if is_random else grid.T[: len(readable)]):
        cells[0].imshow(stored[row].numpy().round().clip(0, 255).astype(np.uint8))
        _caption(cells[0], readable, row)
        for axes, image in zip(cells[1:], augmented[row], strict=False):
            axes.imshow(to_levels(image, preprocessing))
    mirrored = ": every image mirrored, in validation too" if preprocessing.horizontal_flip else ""
    fixed = f"what the network gets{mirrored}; this recipe has no random augmentation"
    note = "with random augmentation" if is_random else fixed
    first = grid[0, 1] if is_random else grid[1, 0]
    first.text(0, 1.13 if is_random else 1.04, note, fontsize=9, color="#555555", transform=first.transAxes)
    write_output(path, partial(save, figure), overwrite)


def _different(versions: Tensor) -> list[Tensor]:
    """Return the versions of an image that differ, in order."""
    kept: list[Tensor] = []
    for version in versions:
        if not any(torch.equal(version, other) for other in kept):
            kept.append(version)
    return kept


def _readable(table: Table, decode_options: dict[str, Any]) -> tuple[Table, list[NDArray[np.uint8]]]:
    """Decode the images of a small table; return those that can be read, and their pixels."""
    answers = [answer for _, answer in decode_all("pixels", table.sources(), WORKERS, **decode_options)]
    rows = [row for row, answer in enumerate(answers) if isinstance(answer, Answer)]
    if not rows:
        first = f"the first, {truncate(table.images[0])}: {answers[0]}"
        raise DataError(f"{table.name}: none of {counted(len(table), 'image')} could be read; {first}")
    return table.select(np.array(rows)), [answer.pixels for answer in answers if isinstance(answer, Answer)]


def to_levels(image: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Convert a network's input, 3 I I, to pixels; if it was scaled per image, stretch it from its minimum to its maximum."""
    x = image.permute(1, 2, 0).double().numpy()  # 3 I I -> I I 3
    if isinstance(preprocessing.mean, str) or isinstance(preprocessing.std, str):
        x = (x - x.min()) / max(float(np.ptp(x)), 1e-12) * 255
    else:
        x = (x * preprocessing.std + preprocessing.mean) * (255 / preprocessing.value_range)
    return np.asarray(x.round().clip(0, 255), np.uint8)


def _grid(rows: int, columns: int, title: str) -> tuple[Figure, NDArray[Any]]:
    height = rows * (INCHES + 0.4) + 0.55
    figure = Figure(figsize=(columns * (INCHES + 0.12) + 0.2, height), facecolor="white")
    top = 1 - 0.27 / height
    figure.text(0.012, top, shorten(title, TITLE_LENGTH), fontsize=13, fontweight="bold", va="center", parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.012, right=0.988, bottom=0.1 / height, top=1 - 0.85 / height, wspace=0.07, hspace=0.4 / INCHES
    )
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, grid


def _short(name: str, letters: int = 26, capitals: int = 18) -> str:
    name = legible(page_text(name))
    wide = sum(letter.isupper() or letter.isdigit() for letter in name) > len(name) / 2
    return shorten(name, capitals if wide else letters, end=True)


def _caption(axes: Axes, table: Table, row: int) -> None:
    options: dict[str, Any] = {"transform": axes.transAxes, "parse_math": False}  # a `$` in a name is literal
    axes.text(0, 1.13, _short(table.labels[table.targets[row]], 20, 16), fontsize=9.5, fontweight="bold", **options)
    axes.text(0, 1.025, _short(table.images[row]), fontsize=7.5, color="#555555", **options)
