"""The figure of a comparison: the dissimilarity matrix of each representation, and how similar they are."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from alexnet.errors import counted
from alexnet.files import write_output
from alexnet.fonts import legible, save
from alexnet.plotting import page_text, shorten
from alexnet.rsa.representations import Representation

COLUMNS = 6  # matrices side by side
CELL = 2.1  # inches


def draw(found: Sequence[Representation], result: dict[str, Any], path: Path, overwrite: bool) -> None:
    """Draw a comparison to a PNG file."""
    names = [shorten(legible(page_text(name)), 26, end=True) for name in result["names"]]
    columns = min(COLUMNS, max(3, len(found)))
    rows = -(-len(found) // columns)
    side = max(3.2, 0.62 * len(found) + 1.6)
    measures = [key for key in ("rdm", "cka") if any(value is not None for value in _compared(result, key))]
    width, height = max(CELL * columns, (side + 1.8) * len(measures)), (CELL + 0.35) * rows + side + 1.9
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    with matplotlib.rc_context({"text.parse_math": False}):
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[(CELL + 0.35) * rows, side + 1.2])[:, 0]
        panels = np.ravel(above.subplots(rows, columns))
        for axes in panels:
            axes.set_axis_off()
        for axes, one, name in zip(panels, found, names, strict=False):
            axes.imshow(_ranks(one.rdm), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(name, fontsize=9)
        seeds = f", the mean of {counted(result['seeds'], 'seed')}" if result["seeds"] else ""
        above.suptitle(
            f"Dissimilarity of {counted(result['images'], 'image')}{seeds}, from the most alike (dark) to the least",
            fontsize=11,
        )
        titles = {"rdm": "Rank correlation of dissimilarities", "cka": "Linear CKA"}
        for axes, key in zip(np.ravel(below.subplots(1, max(1, len(measures)))), measures, strict=False):
            _heat_map(axes, result[key], names, titles[key], between_seeds=bool(result["seeds"]))
        write_output(path, partial(_save, figure), overwrite)


def _save(figure: Figure, path: Path) -> None:
    save(figure, path)


def _compared(result: dict[str, Any], key: str) -> list[Any]:
    """Return the values of a measure, the diagonal only where it is between seeds."""
    rows = enumerate(result[key]["values"])
    return [value for i, row in rows for j, value in enumerate(row) if j != i or result["seeds"]]


def _ranks(rdm: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the ranks of dissimilarities, from 0 to 1, as one large value would darken all others."""
    ranks = rankdata(rdm, axis=None).reshape(rdm.shape)
    return np.asarray((ranks - ranks.min()) / max(1.0, ranks.max() - ranks.min()))


def _heat_map(axes: Axes, measure: dict[str, Any], names: Sequence[str], title: str, *, between_seeds: bool) -> None:
    values = np.array(measure["values"], dtype=float)
    axes.imshow(np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-1, vmax=1)
    for i, row in enumerate(measure["values"]):
        for j, value in enumerate(row):
            low, high = measure["low"][i][j], measure["high"][i][j]
            interval = "" if low is None or (i == j and not between_seeds) else f"\n{low:.2f} to {high:.2f}"
            text = "" if value is None else f"{value:.2f}{interval}"
            colour = "white" if value is not None and abs(value) > 0.6 else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title(f"{title}, between seeds" if between_seeds else title, fontsize=11)
