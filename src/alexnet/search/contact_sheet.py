"""Contact sheet of a search, as in figure 4 of the 2012 paper: a row per image, followed by its neighbours."""

import os
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from alexnet import fonts
from alexnet.data.decode_pool import Source, decode_all
from alexnet.errors import ImageError, printable
from alexnet.files import MADE_BY, write_output
from alexnet.inference.predict import source_name
from alexnet.progress import say

# pixels: side of an image, gap between two, height of a name, gap between an image and its neighbours
SIDE, GAP, LABEL, APART = 128, 8, 16, 24
MAX_ROWS, MAX_COLUMNS = 100, 20
BASELINE = 12  # font size of a name, below its image
TEXT, MISSING = (96, 96, 96), (224, 224, 224)


def write_sheet(path: Path, sources: Sequence[Source], answers: Sequence[dict[str, Any]], overwrite: bool = False) -> None:
    """Draw the answers of `search_images`, one per source, as a PNG; images that can no longer be read are grey."""
    pairs = zip(sources, answers, strict=True)
    rows = [(source, answer["neighbours"][:MAX_COLUMNS]) for source, answer in pairs if "neighbours" in answer]
    if len(rows) > MAX_ROWS:
        say(f"{path} shows the first {MAX_ROWS} of {len(rows):,} images")
    rows = rows[:MAX_ROWS]
    columns = max((len(near) for _, near in rows), default=0)
    step = SIDE + GAP
    sheet = Image.new("RGB", (GAP + step + APART + columns * step, GAP + max(1, len(rows)) * (step + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    cells = [(row, column) for row, (_, near) in enumerate(rows) for column in range(len(near) + 1)]
    shown: list[Source] = [s for source, near in rows for s in (source, *(Path(n["image"]) for n in near))]
    with closing(decode_all("pixels", shown, os.cpu_count() or 1, cache_size=SIDE)) as tiles:
        for (row, column), (source, tile) in zip(cells, tiles, strict=True):
            x, y = GAP + column * step + (APART if column else 0), GAP + row * (step + LABEL)
            picture = MISSING if isinstance(tile, ImageError) else Image.fromarray(tile.pixels)
            sheet.paste(picture, (x, y, x + SIDE, y + SIDE))
            _write_name(draw, x, y + SIDE, source)
    metadata = PngInfo()
    metadata.add_text("Software", MADE_BY)
    write_output(path, lambda part: sheet.save(part, "PNG", pnginfo=metadata), overwrite)


def _write_name(draw: ImageDraw.ImageDraw, x: int, y: int, source: Source) -> None:
    """Write the name of a source, cut to the width of an image."""
    name = printable(Path(source_name(source)).name.encode("utf-8", "replace").decode())  # bytes that are not UTF-8 become ?
    name = fonts.legible(name)
    if _length(name) > SIDE:
        while _length(f"{name}…") > SIDE:
            name = name[:-1]
        name = f"{name}…"
    for path, part in fonts.font_runs(name):
        draw.text((x, y + BASELINE), part, TEXT, _font(path), anchor="ls")
        x += round(_font(path).getlength(part))


def _length(name: str) -> float:
    return sum(_font(path).getlength(part) for path, part in fonts.font_runs(name))


@cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, 10)
