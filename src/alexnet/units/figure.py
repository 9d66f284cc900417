"""The figure of units: a row for each, with the parts of images that excite it most."""

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
from alexnet.units.units import Box, Excited

SIDE, GAP, LABEL = 96, 6, 64  # pixels: of a part, between two, for the unit's number
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
    metadata = PngInfo()
    metadata.add_text("Software", MADE_BY)
    write_output(path, lambda part: sheet.save(part, "PNG", pnginfo=metadata), overwrite)


def _part(image: NDArray[np.uint8], box: Box) -> Image.Image:
    """Return a part of an image at the size of a tile; a few pixels stay squares."""
    top, left, height, width = box
    part = np.full((height, width, 3), GREY, np.uint8)
    rows = slice(max(0, top), min(image.shape[0], top + height))
    columns = slice(max(0, left), min(image.shape[1], left + width))
    part[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[rows, columns]
    how = Image.Resampling.NEAREST if max(height, width) < SIDE // 3 else Image.Resampling.BICUBIC
    return Image.fromarray(part).resize((SIDE, SIDE), how)
