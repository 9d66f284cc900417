"""Pictures of a dataset: samples with their names, and what a recipe's random changes make of them."""

from __future__ import annotations

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
from alexnet.data.cache import Pixels, header_sizes
from alexnet.data.dataset import resolve
from alexnet.data.decode_pool import Answer, decoded
from alexnet.data.statistics import measure
from alexnet.data.table import Table
from alexnet.errors import DataError, truncate
from alexnet.files import refuse_overwrite, write_output
from alexnet.fonts import legible, save_png
from alexnet.plotting import page_text, short
from alexnet.recipe import Preprocessing, Recipe

SAMPLES, COLUMNS = 24, 6
CHANGED, DRAWN = 6, 5  # images that are changed, and how often each
LARGEST = 224  # pixels a side of a sample
INCHES = 1.75  # a side of a picture
WORKERS = os.cpu_count() or 1


def show_samples(table: Table, path: Path, overwrite: bool = False) -> None:
    """Draw images of a dataset drawn by chance, of as many classes as can be, with label and name, to a PNG file.

    Raises:
        DataError: none of them is readable.
        RunError: the file cannot be written, or is a user's own and is not to `overwrite`.
    """
    refuse_overwrite(path, overwrite)
    few = _by_class(table, SAMPLES)
    sides = [min(size) for size in header_sizes(few, WORKERS)] or [1]
    decode_options = {
        "cache_size": min(LARGEST, int(np.median(sides))),
        "fit": "crop",
        "filter": "bicubic",
        "reduced_decode": True,
    }
    chosen, pixels = _readable(few, decode_options)
    title = f"{table.name}: {len(table):,} images of {len(table.labels):,} classes"
    figure, grid = _grid(-(-len(chosen) // COLUMNS), COLUMNS, title)
    for row, axes in enumerate(grid.flat[: len(chosen)]):
        axes.imshow(pixels[row])
        _name(axes, chosen, row)
    write_output(path, partial(save_png, figure), overwrite)


def show_changes(table: Table, recipe: Recipe, path: Path, overwrite: bool = False) -> None:
    """Draw images of a dataset beside what training by `recipe` may see of them, to a PNG file.

    Means and colours are measured on these few images, so colour noise is only about that of a training.

    Raises:
        DataError: none of them is readable.
        RunError: as for `show_samples`.
    """
    refuse_overwrite(path, overwrite)
    few = _by_class(table, CHANGED)
    recipe = resolve(recipe, few)
    preprocessing = recipe.images.resolved()
    chosen, pixels = _readable(few, preprocessing.decode_options())
    memory, shapes = np.concatenate([image.ravel() for image in pixels]), np.array([image.shape[:2] for image in pixels])
    images = SplitImages(Pixels(memory, shapes, preprocessing), np.arange(len(chosen)), chosen.targets)
    recipe, mean_image = measure(recipe, images)
    preprocessing = recipe.images.resolved(mean_image)
    stored = images.take(np.arange(len(chosen))).images
    rng = torch.Generator().manual_seed(0)
    figure, grid = _grid(len(chosen), 1 + DRAWN, f"{table.name} in training by the recipe {recipe.name}")
    for row, before in enumerate(stored):
        grid[row, 0].imshow(before.numpy().round().clip(0, 255).astype(np.uint8))
        _name(grid[row, 0], chosen, row)
        draws = torch.rand(DRAWN, len(DRAWS), generator=rng)
        after = training_input(before.expand(DRAWN, *before.shape), draws, preprocessing, recipe.augment)
        for axes, image in zip(grid[row, 1:], after, strict=True):
            axes.imshow(_levels(image, preprocessing))
    grid[0, 1].text(0, 1.13, "after changes drawn at random", fontsize=9, color="#555555", transform=grid[0, 1].transAxes)
    write_output(path, partial(save_png, figure), overwrite)


def _by_class(table: Table, count: int) -> Table:
    """Return random images, the same each time, of as many classes as can be; those of a class together."""
    order = np.random.default_rng(0).permutation(len(table))
    order = order[np.argsort(table.targets[order], kind="stable")]  # class after class, by chance within each
    starts = np.searchsorted(table.targets[order], table.targets[order])
    turn = np.arange(len(order)) - starts  # 0 for the first of each class, 1 for the second …
    chosen = order[np.argsort(turn, kind="stable")][:count]
    return table.select(chosen[np.argsort(table.targets[chosen], kind="stable")])


def _readable(table: Table, decode_options: dict[str, Any]) -> tuple[Table, list[NDArray[np.uint8]]]:
    """Decode a small table's images; return those that can be read, and their pixels."""
    answers = [answer for _, answer in decoded("pixels", table.sources(), WORKERS, **decode_options)]
    rows = [row for row, answer in enumerate(answers) if isinstance(answer, Answer)]
    if not rows:
        first = f"the first, {truncate(table.images[0])}: {answers[0]}"
        raise DataError(f"{table.name}: none of {len(table)} images could be read; {first}")
    return table.select(np.array(rows)), [answer.pixels for answer in answers if isinstance(answer, Answer)]


def _levels(image: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return a network's input, 3 I I, as colours; if scaled by itself, from its least to its greatest."""
    x = image.permute(1, 2, 0).double().numpy()  # 3 I I -> I I 3
    if isinstance(preprocessing.mean, str) or isinstance(preprocessing.std, str):
        x = (x - x.min()) / max(float(np.ptp(x)), 1e-12) * 255
    else:
        x = (x * preprocessing.std + preprocessing.mean) * (255 / preprocessing.value_range)
    levels: NDArray[np.uint8] = x.round().clip(0, 255).astype(np.uint8)
    return levels


def _grid(rows: int, columns: int, title: str) -> tuple[Figure, NDArray[Any]]:
    height = rows * (INCHES + 0.4) + 0.55
    figure = Figure(figsize=(columns * (INCHES + 0.12) + 0.2, height), facecolor="white")
    top = 1 - 0.27 / height
    figure.text(0.012, top, page_text(title), fontsize=13, fontweight="bold", va="center", parse_math=False)
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
    return short(name, capitals if wide else letters, end=True)


def _name(axes: Axes, table: Table, row: int) -> None:
    alike: dict[str, Any] = {"transform": axes.transAxes, "parse_math": False}  # a `$` in a name is a `$`
    axes.text(0, 1.13, _short(table.labels[table.targets[row]], 20, 16), fontsize=9.5, fontweight="bold", **alike)
    axes.text(0, 1.025, _short(table.images[row]), fontsize=7.5, color="#555555", **alike)
