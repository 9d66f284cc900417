"""A contact sheet of a search, as in the 2012 paper's figure: a row an image, it first, then its neighbours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from alexnet import fonts
from alexnet.data.decode_pool import Source, decoded
from alexnet.errors import ImageError, printable
from alexnet.files import MADE_BY, write_output
from alexnet.inference.predict import source_name
from alexnet.progress import say

SIDE, GAP, LABEL, APART = 128, 8, 16, 24  # pixels: of an image, between two, for a name, between an image and its neighbours
ROWS, COLUMNS = 100, 20
BASELINE = 12  # of a name, below its image
TEXT, MISSING = (96, 96, 96), (224, 224, 224)


def write_sheet(place: Path, sources: Sequence[Source], answers: Sequence[dict[str, Any]], overwrite: bool = False) -> None:
    """Draw the answers of `search_images`, one a source, as a PNG; what cannot be read (any more) is grey.

    Raises:
        RunError: it cannot be written, or is a user's own and is not to `overwrite`.
    """
    pairs = zip(sources, answers, strict=True)
    found = [(source, answer["neighbours"][:COLUMNS]) for source, answer in pairs if "neighbours" in answer]
    if len(found) > ROWS:
        say(f"{place} shows the first {ROWS} of {len(found):,} images")
    found = found[:ROWS]
    columns = max((len(near) for _, near in found), default=0)
    step = SIDE + GAP
    sheet = Image.new("RGB", (GAP + step + APART + columns * step, GAP + max(1, len(found)) * (step + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    places = [(row, column) for row, (_, near) in enumerate(found) for column in range(len(near) + 1)]
    shown: list[Source] = [s for source, near in found for s in (source, *(Path(n["image"]) for n in near))]
    settings: dict[str, Any] = {"cache_size": SIDE, "fit": "crop", "filter": "bicubic", "reduced_decode": True}
    with closing(decoded("pixels", shown, os.cpu_count() or 1, **settings)) as tiles:
        for (row, column), (source, tile) in zip(places, tiles, strict=True):
            x, y = GAP + column * step + (APART if column else 0), GAP + row * (step + LABEL)
            picture = MISSING if isinstance(tile, ImageError) else Image.fromarray(tile.pixels)
            sheet.paste(picture, (x, y, x + SIDE, y + SIDE))
            _write(draw, x, y + SIDE, source)
    mark = PngInfo()
    mark.add_text("Software", MADE_BY)
    write_output(place, lambda part: sheet.save(part, "PNG", pnginfo=mark), overwrite)


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, source: Source) -> None:
    """Write the name of a file, cut to the width of an image."""
    name = printable(Path(source_name(source)).name.encode("utf-8", "replace").decode())  # bytes that are no UTF-8 become ?
    name = fonts.legible(name)
    if _length(name) > SIDE:
        while _length(f"{name}…") > SIDE:
            name = name[:-1]
        name = f"{name}…"
    for path, part in fonts.runs(name):
        draw.text((x, y + BASELINE), part, TEXT, _font(path), anchor="ls")
        x += round(_font(path).getlength(part))


def _length(name: str) -> float:
    return sum(_font(path).getlength(part) for path, part in fonts.runs(name))


@cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, 10)
