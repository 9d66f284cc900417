"""Draw a network as in the 2012 paper: maps as boxes, kernels on their faces, dense layers as bars, towers in rows.

Coordinates are in inches. A drawing is a row of stages, one for each layer that changes the shape; other layers are listed in
the text below the stage.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon
from matplotlib.textpath import TextPath

from alexnet import fonts
from alexnet.errors import AlexNetError, counted
from alexnet.files import write_output
from alexnet.network.summary import LayerSummary, Summary, sizes
from alexnet.plotting import AMBER, GREEN, ORANGE, SKY

# Inches per square root of a size. Square roots make 227 and 6 pixels, 384 and 3 channels, 9,216 and 2 units visible together.
PIXEL, CHANNEL, UNIT = 0.155, 0.041, 0.036
THINNEST, TALLEST = 0.07, 6.0  # limits in inches, for 2 classes or a million
DEEP = (0.38, 0.32)  # right and up, per inch of an edge that recedes
BAR_WIDTH, BAR_DEPTH = 0.16, 0.09
GAP, CROSSING_GAP, ROW_GAP = 0.24, 0.75, 0.5  # between columns, where towers meet, and between towers
MARGIN, LINE = 0.3, 0.185  # around everything; from one line of text to the next

COLOURS = {"input": "#8f8f8f", "convolution": SKY, "max pooling": AMBER, "flatten": "#dddddd", "dense": GREEN}
INK, FAINT, OWN_COLOUR, CROSS_COLOUR = "#1a1a1a", "#505050", "#404040", ORANGE
NAME, TEXT = FontProperties(size=10, weight="bold"), FontProperties(size=8.5)
FORMATS = (".svg", ".png")
DOTS_PER_INCH = 160


@dataclass(frozen=True)
class Box:
    """A box: the lower left corner and the sides of its front, and the offset of its receding edges."""

    x: float
    y: float
    width: float
    height: float
    right: float
    up: float

    def face(self, across: float, above: float) -> tuple[float, float]:
        """Return a point of the right-hand face, by fractions of its two edges."""
        return self.x + self.width + across * self.right, self.y + across * self.up + above * self.height


@dataclass
class Stage:
    """A layer that changes the shape, with the text below it and its boxes, from the upper tower down."""

    layer: LayerSummary
    rows: int
    text: list[str]
    across: bool = False  # a layer in the text below, such as a norm, works across towers
    boxes: list[Box] = field(default_factory=list)

    @property
    def is_map(self) -> bool:
        """Whether the output is C H W."""
        return len(self.layer.output) == 3

    def reads(self, source: Self) -> list[tuple[int, int]]:
        """Return the pairs of a row of `source` and a row of this stage that reads it."""
        every = self.layer.groups == 1 or 1 in (source.rows, self.rows)
        return [(s, t) for s in range(source.rows) for t in range(self.rows) if every or s == t]


def save(summary: Summary, path: Path, overwrite: bool = False) -> None:
    """Draw `summary` to an SVG or PNG file, by the suffix of `path`."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise AlexNetError(f"cannot draw {str(path)!r}: its name must end in {' or '.join(FORMATS)}")
    with style.context("default"):
        options: dict[str, Any] = {"kind": suffix[1:], "dpi": DOTS_PER_INCH, "Title": f"AlexNet: {summary.variant}"}
        write_output(path, partial(fonts.save, draw(summary), **options), overwrite)


def draw(summary: Summary) -> Figure:
    """Draw the figure."""
    stages = _stages(summary)
    width, bottom, top = _place(stages, summary.towers)
    names = bottom - 0.35  # the top of the columns of text
    under = names - LINE * (max(len(stage.text) for stage in stages) + 2)
    low, high = under - 0.7, top + 0.95
    figure = Figure(figsize=(width, high - low), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(low, high))
    axes.set_axis_off()
    for source, stage in pairwise(stages):
        _connect(axes, source, stage)
    for stage in stages:
        _draw_stage(axes, stage, names)
    _write(axes, MARGIN, high - 0.22, f"AlexNet: {summary.variant}", 15, INK, weight="bold", ha="left")
    classes, towers = counted(summary.layers[-1].output[0], "class"), f"{summary.towers} towers, " if summary.towers > 1 else ""
    facts = f"{sizes(summary.input, '×')} in, {classes} out, {towers}{summary.parameters:,} parameters"
    _write(axes, MARGIN, high - 0.54, facts, 10, FAINT, ha="left")
    _legend(axes, stages, under)
    return figure


def _stages(summary: Summary) -> list[Stage]:
    """Group the layers into stages."""
    stages = [Stage(LayerSummary("input", "input", summary.input), 1, [sizes(summary.input, "×")])]
    before: list[str] = []
    for layer in summary.layers:
        if layer.kind == "zero padding":
            before = [f"zeros to {layer.output[1]}×{layer.output[2]}"]
        elif layer.kind in COLOURS:
            rows = summary.towers if len(layer.output) == 3 else 1
            per_tower = (layer.output[0] // rows, *layer.output[1:])
            text = [f"{rows} × {sizes(per_tower, '×')}" if rows > 1 else sizes(layer.output, "×"), *before]
            if layer.window:
                what = "kernel" if layer.kind == "convolution" else "window"
                text += [f"{what} {layer.window}×{layer.window}", f"stride {layer.stride}"]
            if layer.padding:
                text[-1] += f", pad {layer.padding}"
            stages.append(Stage(layer, rows, text))
            before = []
        else:
            across = stages[-1].rows > 1 and layer.groups == 1
            stages[-1].across |= across
            stages[-1].text.append(layer.kind.removeprefix("local ").replace("normalisation", "norm"))
            stages[-1].text += ["across towers"] if across else []
    return stages


def _box_size(stage: Stage) -> Box:
    """Return the size of the stage's boxes, as a box at the origin."""
    channels = stage.layer.output[0]
    if not stage.is_map:
        height = min(max(THINNEST, UNIT * math.sqrt(channels)), TALLEST)
        return Box(0, 0, BAR_WIDTH, height, BAR_DEPTH * DEEP[0], BAR_DEPTH * DEEP[1])
    side = PIXEL * math.sqrt(stage.layer.output[1])
    return Box(0, 0, max(THINNEST, CHANNEL * math.sqrt(channels / stage.rows)), side, side * DEEP[0], side * DEEP[1])


def _place(stages: list[Stage], towers: int) -> tuple[float, float, float]:
    """Place the boxes of all stages; return the page's width and the lowest and highest point of all boxes."""
    shapes = [_box_size(stage) for stage in stages]
    tall = [shape.height + shape.up for shape in shapes]
    pitch = ROW_GAP + max(height for height, stage in zip(tall, stages, strict=True) if stage.rows == towers and stage.is_map)
    x = MARGIN
    for i, (stage, shape) in enumerate(zip(stages, shapes, strict=True)):
        if i:
            crossing = len(stage.reads(stages[i - 1])) > max(stage.rows, stages[i - 1].rows)
            x += CROSSING_GAP if crossing else GAP
        texts = (_text_width(stage.layer.name, NAME), *(_text_width(text, TEXT) for text in stage.text))
        column = max(shape.width + shape.right, *texts)
        left = x + (column - shape.width - shape.right) / 2
        for row in range(stage.rows):
            middle = pitch * ((stage.rows - 1) / 2 - row)
            stage.boxes.append(Box(left, middle - tall[i] / 2, shape.width, shape.height, shape.right, shape.up))
        x += column
    boxes = [box for stage in stages for box in stage.boxes]
    return x + MARGIN, min(box.y for box in boxes), max(box.y + box.height + box.up for box in boxes)


def _text_width(text: str, font: FontProperties) -> float:
    """Return the width of a text in inches."""
    return float(TextPath((0, 0), text, prop=font).get_extents().width) / 72


def _draw_stage(axes: Axes, stage: Stage, names: float) -> None:
    """Draw the boxes of a stage, and write its text below `names`."""
    colour = to_rgb(COLOURS[stage.layer.kind])
    for row, box in enumerate(stage.boxes, 1):
        x, y, w, h, right, up = box.x, box.y, box.width, box.height, box.right, box.up
        front = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        lid = [(x, y + h), (x + w, y + h), (x + w + right, y + h + up), (x + right, y + h + up)]
        side = [box.face(0, 0), box.face(1, 0), box.face(1, 1), box.face(0, 1)]
        for part, corners, white in (("lid", lid, 0.65), ("side", side, 0.4), ("front", front, 0.12)):
            shade = tuple(c + (1 - c) * white for c in colour)
            patch = Polygon(corners, facecolor=shade, edgecolor=INK, linewidth=0.7, joinstyle="round", zorder=2)
            patch.set_gid(f"{stage.layer.name}-{row}{'' if part == 'front' else f'-{part}'}")
            axes.add_patch(patch)
        if stage.is_map:
            channels, size, _ = stage.layer.output
            _write(axes, x + w / 2, y - 0.05, str(channels // stage.rows), 7.5, FAINT)
            _write(axes, x + right / 2 - 0.04, y + h + up / 2 + 0.02, str(size), 7.5, FAINT, ha="right", va="bottom")
    if stage.across:
        for upper, lower in pairwise(stage.boxes):
            x = upper.x + upper.width + upper.right / 2
            ends = [upper.y + upper.up / 2, lower.y + lower.height + lower.up]
            axes.plot([x, x], ends, color=CROSS_COLOUR, linewidth=1.1, linestyle=(0, (3, 2)), zorder=3)
    middle = stage.boxes[0].x + (stage.boxes[0].width + stage.boxes[0].right) / 2
    _write(axes, middle, names, stage.layer.name, 10, INK, weight="bold")
    for i, line in enumerate(stage.text):
        _write(axes, middle, names - 0.04 - LINE * (i + 1), line, 8.5 if i == 0 else 8, INK if i == 0 else FAINT)


def _connect(axes: Axes, source: Stage, stage: Stage) -> None:
    """Connect a stage to its source: maps by a kernel window that narrows to a point, bars by a beam."""
    if not stage.is_map:
        _beams(axes, source, stage)
        return
    share = math.sqrt(stage.layer.window / source.layer.output[1]) / 2
    for s, start in enumerate(source.boxes):
        corners = [start.face(0.5 + a * share, 0.5 + b * share) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        axes.add_patch(Polygon(corners, facecolor=(1, 1, 1, 0.75), edgecolor=OWN_COLOUR, linewidth=0.8, zorder=3))
        for t in (t for row, t in stage.reads(source) if row == s):
            point = (stage.boxes[t].x, stage.boxes[t].y + stage.boxes[t].height / 2)
            colour = CROSS_COLOUR if s != t and source.rows > 1 and stage.rows > 1 else OWN_COLOUR
            for corner in corners:
                axes.plot(*zip(corner, point, strict=True), color=colour, linewidth=0.6, alpha=0.9, zorder=3.1)


def _beams(axes: Axes, source: Stage, bar: Stage) -> None:
    """Draw a beam from each row of `source` to its part of a bar, with crossed lines if every unit reads all rows."""
    (end,) = bar.boxes
    for row, start in enumerate(source.boxes):
        low, high = (end.y + end.height * (1 - share / source.rows) for share in (row + 1, row))
        near = [start.face(1, 0), start.face(1, 1)]
        axes.add_patch(Polygon([*near, (end.x, high), (end.x, low)], facecolor="#e4e4e4", edgecolor="none", zorder=1))
        for (x, y), height in zip(near, (high, low) if bar.layer.groups == 1 else (low, high), strict=True):
            axes.plot([x, end.x], [y, height], color=OWN_COLOUR, linewidth=0.6, zorder=1.1)


def _legend(axes: Axes, stages: list[Stage], under: float) -> None:
    kinds = dict.fromkeys(stage.layer.kind for stage in stages)
    handles: list[Patch | Line2D] = [Patch(facecolor=COLOURS[kind], edgecolor=INK, linewidth=0.7, label=kind) for kind in kinds]
    if any(stage.rows > 1 for stage in stages):
        lines = {"sees its own tower": OWN_COLOUR, "sees another tower": CROSS_COLOUR}
        handles += [Line2D([], [], color=colour, label=label) for label, colour in lines.items()]
    position: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (MARGIN, under), "bbox_transform": axes.transData}
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "borderpad": 0, "borderaxespad": 0, "labelcolor": FAINT}
    axes.legend(handles=handles, ncols=len(handles), handlelength=1.3, columnspacing=1.4, **look, **position)
    scale = "Sides are drawn by the square root of height, width, channels or units."
    _write(axes, MARGIN, under - 0.35, scale, 8, FAINT, ha="left")


def _write(axes: Axes, x: float, y: float, text: str, points: float, colour: str, **style: Any) -> None:
    axes.text(x, y, text, fontsize=points, color=colour, parse_math=False, zorder=4, **{"ha": "center", "va": "top", **style})
