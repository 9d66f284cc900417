"""Draw the figures of by-hand.md into figures/, with the layers of alexnet.scratch: `python docs/draw_by_hand.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits

from alexnet.scratch import Conv2D, LocalResponseNormalization, MaxPooling2D, ReLU, Tanh

FOLDER = Path(__file__).parent / "figures"
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by colour-blind people too
GREY = "#555555"


def grid(axes: Axes, values: np.ndarray, title: str, *, numbers: bool = True, style: str = "{:.0f}") -> None:
    """Draw a map as cells, dark for large values, with its numbers."""
    top = np.abs(values).max()
    signed = values.min() < 0
    axes.imshow(
        values, cmap="RdBu_r" if signed else "Greys", vmin=-1.2 * top if signed else 0, vmax=(1.2 if signed else 1.6) * top
    )
    axes.set_title(title, fontsize=10)
    axes.set_xticks(np.arange(-0.5, values.shape[1]), minor=True)
    axes.set_yticks(np.arange(-0.5, values.shape[0]), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if numbers:
        for (i, j), value in np.ndenumerate(values):
            shade = "white" if abs(value) > 0.75 * top else "black"
            axes.text(j, i, style.format(value), ha="center", va="center", fontsize=7, color=shade)


def frame(axes: Axes, row: float, column: float, size: float, colour: str, inset: float = 0.0) -> None:
    """Draw a square around cells."""
    place, side = (column - 0.5 + inset, row - 0.5 + inset), size - 2 * inset
    axes.add_patch(Rectangle(place, side, side, fill=False, edgecolor=colour, linewidth=2.2, zorder=5))


def sliding() -> None:
    """A kernel that answers to edges slides over a digit."""
    digit = load_digits().images[0]
    layer = Conv2D(1, 3, bias=False)
    layer.forward(digit[..., None])
    layer.parameters["weight"] = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[..., None, None]
    out = layer.forward(digit[..., None])[..., 0]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3.5), width_ratios=(8, 3, 6), layout="constrained")
    grid(left, digit, "a digit, 8x8")
    grid(middle, layer.parameters["weight"][..., 0, 0], "the kernel, 3x3")
    grid(right, out, "its answers: (8 - 3) / 1 + 1 = 6 a side")
    for (row, column), colour in zip(((0, 1), (3, 2), (5, 5)), COLOURS, strict=True):
        frame(left, row, column, 3, colour, inset=0.06)
        frame(right, row, column, 1, colour, inset=0.06)
    save(figure, "sliding")


def pooling() -> None:
    """Windows of 3 with stride 2 share a row and a column; of 2 with stride 2 they share nothing."""
    values = np.random.default_rng(11).integers(0, 60, (7, 7)).astype(float)
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.2), width_ratios=(7, 3, 7, 3), layout="constrained")
    for (size, text), left, right in zip(((3, "overlapping"), (2, "not overlapping")), axes[::2], axes[1::2], strict=True):
        image = values if size == 3 else values[:6, :6]
        out = MaxPooling2D(size, 2).forward(image[..., None])[..., 0]
        grid(left, image, f"{text}: windows of {size}, stride 2")
        grid(right, out, "the largest of each")
        for number, (row, column) in enumerate(((0, 0), (0, 1), (1, 0))):
            frame(left, 2 * row, 2 * column, size, COLOURS[number], inset=0.03 + 0.05 * number)
            frame(right, row, column, 1, COLOURS[number], inset=0.06)
    save(figure, "pooling")


def saturation() -> None:
    """ReLU and tanh, and their slopes: what reaches the layers below."""
    x = np.linspace(-5, 5, 401)
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
    for layer, colour, name, line in ((ReLU(), COLOURS[0], "ReLU", "-"), (Tanh(), COLOURS[1], "tanh", "--")):
        axes[0].plot(x, layer.forward(x), color=colour, linestyle=line, label=name, linewidth=2)
        axes[1].plot(x, layer.backward(np.ones_like(x)), color=colour, linestyle=line, label=name, linewidth=2)
    axes[0].set(title="the output", ylim=(-1.5, 3.5), xlabel="input")
    axes[1].set(title="the slope: how much learning comes through", ylim=(-0.1, 1.25), xlabel="input")
    for side in (-5, 2.5):
        axes[1].axvspan(side, side + 2.5, color=COLOURS[1], alpha=0.1, linewidth=0)
    axes[1].text(3.75, 0.22, "tanh is flat:\nnothing is learned", ha="center", fontsize=8, color=GREY)
    axes[0].legend(frameon=False)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    save(figure, "saturation")


def inhibition() -> None:
    """One loud channel makes its neighbours quieter."""
    channels = np.full(15, 3.0)
    channels[7] = 12.0
    norm = LocalResponseNormalization(5, bias=1.0, alpha=0.02)  # far more than 1e-4, so that it shows
    out = norm.forward(channels.reshape(1, 1, -1)).ravel()
    figure, axes = plt.subplots(figsize=(8.5, 2.8), layout="constrained")
    place = np.arange(15)
    axes.bar(place - 0.2, channels, 0.4, color="#bbbbbb", label="before")
    axes.bar(place + 0.2, out, 0.4, color=COLOURS[0], label="after")
    axes.axvspan(4.5, 9.5, color=COLOURS[1], alpha=0.1, linewidth=0)
    axes.text(9.6, 10.6, "the five whose window holds channel 7", fontsize=8, color=GREY)
    axes.set(xlabel="channel", xticks=place)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "inhibition")


def save(figure: mpl.figure.Figure, name: str) -> None:
    """Write figures/NAME.svg, the same bytes each time."""
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    mpl.use("agg")
    mpl.rcParams |= {"svg.hashsalt": "alexnet", "font.family": "DejaVu Sans", "font.size": 9}
    FOLDER.mkdir(exist_ok=True)
    for draw in (sliding, pooling, saturation, inhibition):
        draw()
