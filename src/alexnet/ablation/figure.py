"""Figure of a study's results."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from alexnet import fonts
from alexnet.ablation.results import claim, difference, mean, title
from alexnet.files import write
from alexnet.plotting import AMBER, BLUE, GREEN, GREY, ORANGE, PINK, SKY

COLOURS = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY)  # of the arms
INK = "#404040"
WIDTH, ROW = 9.6, 0.72  # inches: of the figure, and of an arm
LINE, LETTERS = 0.165, 135  # inches of a line of text below, and letters in it
ASIDE = 30  # letters of what stands beside an arm


def draw(study: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """Draw a study's results into files, `.png` or `.svg` as their names say.

    A dot is a seed, a diamond the mean, a line its 95 % interval; with steps, the training errors by epoch stand beside.
    """
    steps = study["measure"] == "steps"
    words = "\n".join(line for text in (claim(study), study["how"]) for line in textwrap.wrap(text, LETTERS))
    tall, under = max(3.0 if steps else 0.0, ROW * len(study["arms"]) + 0.6), LINE * (words.count("\n") + 1) + 0.3
    share = under / (tall + under)
    figure = Figure(figsize=(WIDTH, tall + under), facecolor="white")
    figure.set_layout_engine("constrained", rect=(0.01, share, 0.98, 0.99 - share))
    if steps:
        _curves(figure.add_subplot(1, 2, 1), study)
    _dots(figure.add_subplot(1, 2, 2) if steps else figure.add_subplot(), study)
    below = share - 0.12 / (tall + under)
    figure.text(0.02, below, words, fontsize=8.5, color=INK, va="top", linespacing=1.25, parse_math=False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": study["study"]}):
        for path in paths:
            kind = path.suffix.removeprefix(".")
            style: dict[str, Any] = {"dpi": 160, "metadata": {"Date": None} if kind == "svg" else {}}
            write(path, partial(fonts.save, figure, kind=kind, **style))


def _dots(axes: Axes, study: Mapping[str, Any]) -> None:
    """A row for each arm, the first on top; its figures, and what was claimed of it, on the right."""
    for row, arm in enumerate(study["arms"]):
        colour = COLOURS[row % len(COLOURS)]
        known = [value for value in arm["values"] if value is not None]
        axes.plot(known, [row - 0.17] * len(known), "o", color=colour, alpha=0.55, markersize=6, markeredgewidth=0)
        if arm["mean"] is not None:
            axes.plot(arm["mean_interval"] or [], [row + 0.12] * len(arm["mean_interval"] or []), color=colour, linewidth=2)
            axes.plot(arm["mean"], row + 0.12, "D", color=colour, markersize=7)
        claimed = textwrap.wrap(f"claimed: {arm['claimed']}", ASIDE) if arm["claimed"] else []
        beside = [mean(arm, study), *filter(None, [difference(arm, study)]), *claimed]
        style: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "parse_math": False}
        axes.text(1.02, row, "\n".join(beside), fontsize=8.5, color=INK, **style)
    labels = [
        textwrap.fill(fonts.legible(arm["arm"]), 24) + ("" if arm["lr"] is None else f"\nlr {arm['lr']:g}")
        for arm in study["arms"]
    ]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if study["measure"] == "accuracy":
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    else:
        axes.set_xlim(left=0)
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.7)
    axes.set_xlabel(title(study), fontsize=9.5)
    _plain(axes)


def _curves(axes: Axes, study: Mapping[str, Any]) -> None:
    """Training error by epoch, a curve a seed, as in figure 1 of the paper."""
    for row, arm in enumerate(study["arms"]):
        colour = COLOURS[row % len(COLOURS)]
        for seed, run in enumerate(arm["runs"]):
            curve = list(zip(*run["curve"], strict=True)) or [(), ()]  # of a run that diverged there is none
            axes.plot(*curve, color=colour, linewidth=1.5, alpha=0.8, label=arm["arm"] if seed == 0 else None)
    axes.axhline(study["aim"], color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_xlim(left=0)
    axes.set_xlabel("epochs", fontsize=9.5)
    axes.set_ylabel("training error", fontsize=9.5)
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelsize=9)
