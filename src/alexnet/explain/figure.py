"""Figure of an explanation: the photo under its heat maps, the most probable labels, and the strongest maps by convolution."""

import os
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from alexnet.data.decode_pool import Source
from alexnet.errors import ImageError, RunError, error_reason
from alexnet.explain.attribution import Explanation, explain, shares, strongest
from alexnet.explain.methods import METHODS
from alexnet.explain.scores import Scores
from alexnet.files import MADE_BY, ZIP_COMMENT, refuse_overwrite, write_output
from alexnet.fonts import legible, save
from alexnet.inference.predict import best, source_name
from alexnet.network.alexnet import AlexNet
from alexnet.network.filters import filter_grid
from alexnet.plotting import BLUE, GREY, NEUTRAL, ORANGE, page_text, shorten
from alexnet.run import ModelConfig

MAPS_SHOWN = 12  # of each convolution, the strongest first
LABELS_SHOWN = 5
COLUMNS = 4  # panels in a row: the image, then the heat maps
ABOVE, PANELS, GAP, MAPS, BELOW = 1.032, 2.769, 0.441, 4.014, 0.344  # inches of height, `PANELS` for each row
SCORES = 0.6  # inches more for each row
LONGEST = 200  # bytes of a name; a file's name may have 255 in all
FOR_AND_AGAINST = LinearSegmentedColormap.from_list("for and against", [BLUE, NEUTRAL, ORANGE])


def write_explanations(
    network: AlexNet,
    config: ModelConfig,
    sources: Sequence[Source],
    folder: Path,
    *,
    arrays: bool,
    overwrite: bool = False,
    **about: Any,
) -> Iterator[dict[str, Any]]:
    """Draw each source's explanation into `folder` and yield an answer, as `Run.explain` does; `about` is for `explain`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error_reason(error)}; name another --out") from error
    stems = [folder / stem for stem in _stems(sources)]
    kinds = (".png", ".npz") if arrays else (".png",)
    for path in [folder / "filters.png", *(Path(f"{stem}{kind}") for stem in stems for kind in kinds)]:
        refuse_overwrite(path, overwrite)
    results = explain(network, config, sources, **about)
    kernels = filter_grid(network.state_dict()["features.conv1.weight"].float().cpu().numpy(), network.row.towers)
    large = Image.fromarray(kernels).resize((kernels.shape[1] * 4, kernels.shape[0] * 4), Image.Resampling.NEAREST)
    mark = PngInfo()
    mark.add_text("Software", MADE_BY)
    write_output(folder / "filters.png", partial(large.save, format="png", pnginfo=mark), overwrite)
    for stem, (source, result) in zip(stems, results, strict=True):
        name = source_name(source)
        if isinstance(result, ImageError):
            yield {"image": name, "error": str(result)}
            continue
        figure, archive = Path(f"{stem}.png"), Path(f"{stem}.npz")
        write_output(figure, partial(save_figure, result, name=name), overwrite)
        if arrays:
            write_output(archive, partial(_save_arrays, result), overwrite)
        predictions = best(result.probabilities, result.labels, LABELS_SHOWN)
        paths = {"figure": str(figure)} | ({"arrays": str(archive)} if arrays else {})
        scores = {"scores": {name: each._asdict() for name, each in result.scores.items()}} if result.scores else {}
        yield {"image": name, "predictions": predictions, **scores, **paths}


def _stems(sources: Sequence[Source]) -> Iterator[str]:
    """Yield a unique name for each source's files, such as `cat-explained`; names also differ if case is ignored."""
    taken: set[str] = set()
    for source in sources:
        stem, number = source.stem if isinstance(source, Path) else Path(source_name(source)).stem, 1
        while len(os.fsencode(stem)) > LONGEST:
            stem = stem[:-1]
        name = stem
        while (key := unicodedata.normalize("NFC", name).casefold()) in taken:  # the same name in two folders
            number += 1
            name = f"{stem}-{number}"
        taken.add(key)
        yield f"{name}-explained"


def _save_arrays(explanation: Explanation, path: Path) -> None:
    with path.open("wb") as file:  # given a path, NumPy might append another suffix
        np.savez_compressed(file, allow_pickle=False, **explanation.arrays())
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = ZIP_COMMENT


def save_figure(explanation: Explanation, path: Path, name: str) -> None:
    """Draw an explanation of the image called `name` to a PNG file."""
    rows = -(-(1 + len(explanation.heat_maps)) // COLUMNS)
    panels = rows * (PANELS + (SCORES if explanation.scores else 0))
    height = ABOVE + panels + GAP + MAPS + BELOW
    figure = Figure(figsize=(11, height), facecolor="white")
    # Names come from the user: a `$` in them is literal.
    with matplotlib.rc_context({"text.parse_math": False}):
        edges = {"left": 0.03, "right": 0.985, "top": 1 - ABOVE / height, "bottom": BELOW / height}
        grid = figure.add_gridspec(3, 1, height_ratios=[panels, GAP, MAPS], hspace=0, **edges)
        _heat_maps(figure, GridSpecFromSubplotSpec(rows, COLUMNS, grid[0], wspace=0.06, hspace=0), explanation)
        below = GridSpecFromSubplotSpec(1, 2, grid[2], width_ratios=[1, 3.1], wspace=0.16)
        _labels(figure.add_subplot(below[0]), explanation)
        _maps(figure, GridSpecFromSubplotSpec(len(explanation.maps), 1, below[1], hspace=0.28), explanation)
        label, probability = explanation.labels[explanation.target], explanation.probabilities[explanation.target]
        head = 1 - 0.387 / height
        figure.text(0.03, head, f"{_short(label)}, {probability:.1%}", fontsize=19, fontweight="bold", va="center")
        figure.text(0.985, head, _short(name, 60), fontsize=10, color="#555555", ha="right", va="center")
        save(figure, path)


def _short(name: str, length: int = 22) -> str:
    return shorten(legible(page_text(name)), length, end=True)


def _heat_maps(figure: Figure, grid: GridSpecFromSubplotSpec, explanation: Explanation) -> None:
    grey = explanation.pixels.mean(2)
    height, width = grey.shape
    for place, (name, heat) in enumerate([("", None), *explanation.heat_maps.items()]):
        axes = figure.add_subplot(grid[divmod(place, COLUMNS)])
        title = METHODS[name].title.format(layer=explanation.layer) if name else "The image as it goes in"
        axes.set_anchor("N")
        axes.set_title(title, fontsize=9.5, loc="left", pad=5)
        axes.set_axis_off()
        if heat is None:
            axes.imshow(explanation.pixels)
            continue
        axes.imshow(255 - (255 - grey) * 0.45, cmap="gray", vmin=0, vmax=255)
        (share, strength), over = shares(heat), (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(share, cmap=FOR_AND_AGAINST, vmin=-1, vmax=1, alpha=strength, extent=over, interpolation="bilinear")
        if name in explanation.scores:
            axes.text(0, -0.02, _in_words(explanation.scores[name]), fontsize=8, va="top", transform=axes.transAxes)
    legend = 1 - 0.731 / figure.get_figheight()
    figure.text(0.985, legend, "orange: for the label", fontsize=9, color=ORANGE, ha="right")
    figure.text(0.855, legend, "blue: against it", fontsize=9, color=BLUE, ha="right")


def _in_words(scores: Scores) -> str:
    correlation = "undefined" if scores.redrawn_correlation is None else f"{scores.redrawn_correlation:.2f}"
    return (
        f"deletion {scores.deletion:.2f} (random order {scores.random_deletion:.2f})\n"
        f"insertion {scores.insertion:.2f} (random order {scores.random_insertion:.2f})\n"
        f"correlation with random weights {correlation}"
    )


def _labels(axes: Axes, explanation: Explanation) -> None:
    for y, (label, probability) in enumerate(explanation.top(LABELS_SHOWN)):
        axes.barh(y, probability, height=0.32, color=BLUE)
        axes.barh(y, 1.0, height=0.32, color=GREY, alpha=0.15)
        axes.text(0, y - 0.27, _short(label), fontsize=10, va="bottom")
        axes.text(1, y - 0.27, f"{probability:.1%}", fontsize=10, va="bottom", ha="right", color="#555555")
    axes.set_xlim(0, 1)
    axes.set_ylim(LABELS_SHOWN - 0.4, -0.75)
    axes.set_axis_off()


def _maps(figure: Figure, grid: GridSpecFromSubplotSpec, explanation: Explanation) -> None:
    """Draw a row of the strongest maps of each convolution, each scaled from its minimum to its maximum."""
    for row, (name, maps) in enumerate(explanation.maps.items()):
        axes = figure.add_subplot(grid[row])
        shown = strongest(maps, MAPS_SHOWN)
        height, width = maps.shape[1:]
        size = f"{height}x{width}" if (height, width) != (1, 1) else "one pixel"
        axes.set_title(f"{name}: the {len(shown)} strongest of {len(maps)} maps, {size}", fontsize=9, loc="left", pad=3)
        low, high = shown.min((1, 2), keepdims=True), shown.max((1, 2), keepdims=True)
        gap = max(1, round(height / 16))  # empty columns between two maps
        padded = np.pad((shown - low) / np.maximum(high - low, 1e-12), ((0, 0), (0, 0), (0, gap)), constant_values=np.nan)
        strip = padded.transpose(1, 0, 2).reshape(height, -1)[:, :-gap]
        axes.imshow(strip, cmap="cividis", interpolation="nearest")
        axes.set_anchor("W")
        axes.set_axis_off()
