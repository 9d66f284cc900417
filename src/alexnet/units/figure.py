"""The figures of units: a row for each, with the parts of images that excite it most, or an image made up for each."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from alexnet.data.decode_pool import Source
from alexnet.data.preprocessing import as_seen
from alexnet.errors import ImageError
from alexnet.files import MADE_BY, write_output
from alexnet.inference.predict import iter_images
from alexnet.recipe import Preprocessing
from alexnet.units.ascent import Drawn
from alexnet.units.units import Box, Excited

SIDE, GAP, LABEL = 96, 6, 64  # pixels: of a part, between two, for the unit's number
ACROSS, LARGE, LINE = 6, 160, 20  # images made up in a row; pixels of each, and of the line above it
GREY, TEXT = (224, 224, 224), (64, 64, 64)


def draw(
    excited: Excited,
    places: list[list[Box]],
    sources: Sequence[Source],
    preprocessing: Preprocessing,
    path: Path,
    overwrite: bool,
) -> None:
    """Draw the parts as a PNG; grey is what lies outside an image, and the place of an image that does not excite the unit."""
    rows, columns = excited.images.shape
    step = SIDE + GAP
    sheet = Image.new("RGB", (LABEL + columns * step + GAP, rows * step + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, unit in enumerate(excited.units):
        pen.text((GAP, GAP + row * step + SIDE // 2), str(unit), TEXT, anchor="lm", font_size=16)
    wanted = sorted(set(excited.images.ravel().tolist()))
    with closing(iter_images([sources[i] for i in wanted], preprocessing)) as images:
        for number, (_, image) in zip(wanted, images, strict=True):
            for row, column in np.argwhere(excited.images == number).tolist():
                x, y = LABEL + GAP + column * step, GAP + row * step
                tile: Image.Image | tuple[int, int, int] = GREY
                if not isinstance(image, ImageError) and excited.values[row, column] > 0:
                    tile = _part(as_seen(image, preprocessing), places[row][column])
                sheet.paste(tile, (x, y, x + SIDE, y + SIDE))
    _save(sheet, path, overwrite)


def draw_made_up(drawn: Drawn, path: Path, overwrite: bool) -> None:
    """Draw a PNG of images made up for units, each with the unit's number and the activation; dead units are named only."""
    rows, tile = -(-len(drawn.units) // ACROSS), LARGE + GAP
    sheet = Image.new("RGB", (min(ACROSS, len(drawn.units)) * tile + GAP, rows * (tile + LINE) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (unit, image, value, dead) in enumerate(
        zip(drawn.units, drawn.images, drawn.activations, drawn.dead, strict=True)
    ):
        x, y = GAP + place % ACROSS * tile, GAP + place // ACROSS * (tile + LINE)
        pen.text((x, y), f"{unit}: dead" if dead else f"{unit}: {value:.3g}", TEXT, font_size=14)
        sheet.paste(GREY if dead else _part(image, drawn.box, LARGE), (x, y + LINE, x + LARGE, y + LINE + LARGE))
    _save(sheet, path, overwrite)


def _save(sheet: Image.Image, path: Path, overwrite: bool) -> None:
    metadata = PngInfo()
    metadata.add_text("Software", MADE_BY)
    write_output(path, lambda part: sheet.save(part, "PNG", pnginfo=metadata), overwrite)


def _part(image: NDArray[np.uint8], box: Box, length: int = SIDE) -> Image.Image:
    """Return a part of an image at the size of a tile; a few pixels stay squares."""
    top, left, height, width = box
    part = np.full((height, width, 3), GREY, np.uint8)
    rows = slice(max(0, top), min(image.shape[0], top + height))
    columns = slice(max(0, left), min(image.shape[1], left + width))
    part[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[rows, columns]
    how = Image.Resampling.NEAREST if max(height, width) < length // 3 else Image.Resampling.BICUBIC
    return Image.fromarray(part).resize((length, length), how)
