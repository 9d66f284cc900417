"""Figures of the report: inline SVG charts, and thumbnails."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from alexnet import fonts
from alexnet.errors import counted
from alexnet.inference.evaluate import Evaluation
from alexnet.inference.metrics import BINS, Reliability
from alexnet.plotting import BLUE, GREY, ORANGE, data_uri, shorten

DOTTED = 15  # epochs; longer curves have no dots
TICKS = 40  # class names along an axis of the confusion map
NUMBERED = 20  # classes; larger confusion matrices are drawn without counts
NAME_LENGTH = 18
THUMBNAIL = 176  # largest side in pixels: twice the displayed size, for high-resolution screens

Row = Mapping[str, float]


class Chart(NamedTuple):
    """An `<svg>` element, and a sentence that describes it."""

    svg: str
    finding: str


def curves(history: Sequence[Row], kept: int) -> dict[str, Chart]:
    """Return charts by epoch, with the epoch `kept` marked, by title."""
    return {
        "Accuracy": _pair(history, kept, "top1", "accuracy", "{:.1%}"),
        "Loss": _pair(history, kept, "loss", "loss", "{:.2f}"),
        "Learning rate": _learning_rate(history, kept),
    }


def _pair(history: Sequence[Row], kept: int, key: str, name: str, form: str) -> Chart:
    """Plot a metric of training (dashed) and validation."""
    figure, axes = _epoch_axes(history, kept)
    _line(axes, history, f"train_{key}", ORANGE, dashed=True)
    _line(axes, history, f"val_{key}", BLUE)
    best = next(row for row in history if row["epoch"] == kept)
    axes.plot([kept], [best[f"val_{key}"]], "o", markersize=8, markerfacecolor="none", markeredgecolor=BLUE)
    if key == "top1":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if len(history) == 1:
            axes.set_ylim(0, 1)
    else:
        axes.set_ylim(bottom=0)
    validation, training = ([row[f"{split}_{key}"] for row in history] for split in ("val", "train"))
    ends = dict.fromkeys(form.format(training[i]) for i in (0, -1))
    finding = f"{_change(f'Validation {name}', validation, form)}; that of training {'goes from ' if len(ends) > 1 else 'is '}"
    return Chart(_svg(figure, key), f"{finding}{' to '.join(ends)}.")


def _learning_rate(history: Sequence[Row], kept: int) -> Chart:
    figure, axes = _epoch_axes(history, kept)
    _line(axes, history, "lr", GREY)
    axes.set_ylim(bottom=0)
    rates = [row["lr"] for row in history]
    top = int(np.argmax(rates))
    finding = f"Learning rate highest after epoch {history[top]['epoch']:.0f} ({rates[top]:.2g}), {rates[-1]:.2g} at the end."
    return Chart(_svg(figure, "rate"), finding if len(rates) > 1 else f"Learning rate {rates[0]:.2g} after the only epoch.")


def _change(name: str, values: Sequence[float], form: str) -> str:
    """Return a sentence such as `Validation accuracy rises from 14.5% to 84.4% over 5 epochs`."""
    first, last = form.format(values[0]), form.format(values[-1])
    if len(values) == 1:
        return f"{name} is {first} after the only epoch"
    if first == last:
        return f"{name} is {first} in the first and in the last of {len(values)} epochs"
    return f"{name} {'rises' if values[-1] > values[0] else 'falls'} from {first} to {last} over {len(values)} epochs"


def _epoch_axes(history: Sequence[Row], kept: int) -> tuple[Figure, Axes]:
    """Return empty axes over epochs, with a line at epoch `kept`; small enough to be legible on a phone."""
    figure = Figure(figsize=(4.0, 2.7))
    axes = figure.add_axes((0.16, 0.13, 0.81, 0.84))  # room for 100.0%
    first, last, margin = history[0]["epoch"], history[-1]["epoch"], min(0.5, 0.03 * len(history))
    axes.set_xlim((first - 0.5, first + 0.5) if len(history) == 1 else (first - margin, last + margin))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.axvline(kept, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(length=0, pad=5, labelsize=10)


def _line(axes: Axes, history: Sequence[Row], key: str, color: str, *, dashed: bool = False) -> None:
    epochs, values = [row["epoch"] for row in history], [row[key] for row in history]
    style, marker = (0, (4, 2)) if dashed else "-", "o" if len(history) <= DOTTED else ""
    axes.plot(epochs, values, color=color, linewidth=1.8, linestyle=style, marker=marker, markersize=3.5)


def reliability(before: Reliability, after: Reliability) -> Chart:
    """Return the reliability diagram: accuracy by confidence, and below it the fraction of images in each bin."""
    figure = Figure(figsize=(5.2, 4.0))
    axes, histogram = figure.add_axes((0.11, 0.34, 0.84, 0.64)), figure.add_axes((0.11, 0.11, 0.84, 0.17))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    for result, color, style in ((before, ORANGE, (0, (4, 2))), (after, BLUE, "-")):
        filled = result.images > 0
        axes.plot(result.confidence[filled], result.accuracy[filled], color=color, linewidth=1.8, linestyle=style)
        sizes = 10 + 110 * np.sqrt(result.images[filled] / result.images.max())
        axes.scatter(result.confidence[filled], result.accuracy[filled], s=sizes, color=color, alpha=0.75, linewidths=0)
    edges, total = np.linspace(0, 1, BINS + 1), after.images.sum()
    histogram.bar(edges[:-1], after.images / total, width=1 / BINS, align="edge", color=BLUE, alpha=0.75)
    for part in (axes, histogram):
        part.set_xlim(0, 1)
        part.xaxis.set_major_formatter(PercentFormatter(1.0))
        part.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _style(part)
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelbottom=False)
    histogram.yaxis.set_major_locator(MaxNLocator(2))
    sure = "too sure" if (after.confidence - after.accuracy) @ after.images > 0 else "not sure enough"
    finding = (
        f"Probabilities are {after.error:.1%} off the truth on average, before calibration {before.error:.1%}; all in all the "
        f"network is {sure}. {after.images[-1] / total:.0%} of its answers have a probability above {edges[-2]:.0%}."
    )
    return Chart(_svg(figure, "reliability"), finding)


def coverage(evaluation: Evaluation) -> Chart | None:
    """Return the accuracy of the answers that are kept, from the most certain on, by their share; None without a threshold."""
    margins = evaluation.margins
    if margins is None:
        return None
    correct = evaluation.logits.argmax(1) == evaluation.targets
    counts = np.arange(1, len(correct) + 1)
    figure = Figure(figsize=(5.2, 3.0))
    axes = figure.add_axes((0.11, 0.11, 0.84, 0.86))
    least = 1.0
    for values, color, style in ((evaluation.probabilities.max(1), ORANGE, (0, (4, 2))), (margins, BLUE, "-")):
        accuracy = np.cumsum(correct[np.argsort(-values, kind="stable")]) / counts
        shown = counts >= min(20, len(counts))  # the accuracy of fewer is noise
        axes.plot(counts[shown] / len(counts), accuracy[shown], color=color, linewidth=1.8, linestyle=style)
        least = min(least, float(accuracy[shown].min()))
    known = margins >= 0
    axes.axvline(known.mean(), color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_xlim(0, 1)
    axes.set_ylim(max(0.0, least - 0.05), 1.005)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _style(axes)
    finding = f"{known.mean():.1%} of these images are known, that is {counted(int(known.sum()), 'image')}"
    if known.any():
        finding += f"; of these, {correct[known].mean():.1%} are right, of all {correct.mean():.1%}"
    return Chart(_svg(figure, "coverage"), f"{finding}.")


def shades(counts: NDArray[np.int64], least: float = 0.08) -> NDArray[np.float64]:
    """Return the opacity of each cell of a confusion matrix: 0 if it is empty, else from `least` to 1.

    It grows with the square root of the cell's fraction of its row, so that 1 mistake in 100 images is still visible.
    """
    fractions = counts / np.maximum(1, counts.sum(1, keepdims=True))
    return np.where(counts > 0, least + (1 - least) * np.sqrt(fractions), 0.0)


def confusion_map(counts: NDArray[np.int64], labels: Sequence[str], finding: str) -> Chart:
    """Return the confusion matrix of many classes as an image."""
    return Chart(_svg(confusion_figure(counts, labels), "confusion"), finding)


def confusion_figure(counts: NDArray[np.int64], labels: Sequence[str]) -> Figure:
    """Return the confusion matrix as a figure: correct predictions in blue, mistakes in orange; of few classes with counts."""
    classes = len(labels)
    cells = np.empty((classes, classes, 4))
    cells[..., :3] = matplotlib.colors.to_rgb(ORANGE)
    cells[np.arange(classes), np.arange(classes), :3] = matplotlib.colors.to_rgb(BLUE)
    cells[..., 3] = shades(counts, least=0.3)  # stronger, as the cells are small
    figure = Figure(figsize=(7.6, 7.6))
    axes = figure.add_axes((0.19, 0.19, 0.8, 0.8))
    axes.imshow(cells, interpolation="none")
    ticks = range(0, classes, ticks_apart(classes))
    names = [shorten(labels[i], NAME_LENGTH) for i in ticks]
    axes.set_xticks(ticks, names, rotation=90, parse_math=False)  # a `$` in a name is literal
    axes.set_yticks(ticks, names, parse_math=False)
    few = classes <= NUMBERED
    axes.tick_params(length=2, color=GREY, labelsize=12 if few else 8)
    axes.spines[:].set_color(GREY)
    axes.spines[:].set_alpha(0.4)
    for row, column in zip(*np.nonzero(counts), strict=True) if few else ():
        color = "white" if cells[row, column, 3] > 0.6 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", color=color, ha="center", va="center", fontsize=12)
    return figure


def ticks_apart(classes: int) -> int:
    """Return the number of classes between named ticks of `confusion_map`."""
    return -(-classes // TICKS)


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an inline `<svg>` element: transparent, with unique ids, without the header of an SVG file."""
    out = io.StringIO()
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    fonts.save(figure, out, "svg", Creator=None, Format=None, Type=None)
    text = out.getvalue()
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r"<[^>]+>", lambda tag: _tag(tag[0], name), text)  # tags only: labels stay as they are


def _tag(tag: str, name: str) -> str:
    """Prefix a tag's ids with the chart's name, use the page's colours, and drop namespaces, which HTML does not need."""
    tag = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag)
    tag = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    return tag.replace(BLUE, "var(--blue)").replace(ORANGE, "var(--orange)")


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """Return an image as a `data:` URL: unchanged if small, else a JPEG of at most `THUMBNAIL` pixels."""
    image = Image.fromarray(np.asarray(pixels))
    small = max(image.size) <= THUMBNAIL // 2
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_uri(image, "png") if small else data_uri(image, "jpeg", quality=82)
