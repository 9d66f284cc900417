"""Fonts for figures: choose an installed font for each character, and escape characters that no font can draw."""

import logging
import unicodedata
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TextIO

from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from alexnet.files import MADE_BY
from alexnet.progress import say

PREFERRED = ("noto", "droid", "cjk", "wqy", "arial", "hiragino", "pingfang", "yahei", "gothic")  # in names of sans serif files
VARIATION_SELECTORS = "\ufe0e\ufe0f"  # emoji in black and white, or in colour
DOTS_PER_INCH = 110  # of PNG files
SHOWN = 10  # characters named in the warning
_warned: list[str] = []  # characters of the warning, which is printed once


@cache
def _default_font() -> Path:
    """Return the file of DejaVu Sans, which comes with matplotlib."""
    return Path(font_manager.findfont("DejaVu Sans"))


@cache
def _other_fonts() -> list[Path]:
    """Return the files of all other installed fonts, the preferred first; matplotlib's own list may be out of date."""
    result = {Path(path) for path in font_manager.findSystemFonts()} - {_default_font()}

    def order(path: Path) -> tuple[bool, bool, str]:
        name = path.name.lower()
        return not any(word in name for word in PREFERRED), "regular" not in name, str(path)

    return sorted(result, key=order)


@cache
def _characters(path: Path) -> frozenset[int]:
    """Return the code points that a font can draw; none for a damaged font or a bitmap font, such as colour emoji."""
    try:
        font = FT2Font(str(path))
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def font_of(character: str) -> Path | None:
    """Return the file of the first font that can draw a character, or None.

    For spaces and format characters, which need no glyph, it is the default font.
    """
    invisible = unicodedata.category(character) in ("Zs", "Cf") or character in VARIATION_SELECTORS
    if invisible or ord(character) in _characters(_default_font()):
        return _default_font()
    return next((path for path in _other_fonts() if ord(character) in _characters(path)), None)


def legible(text: str) -> str:
    """Replace characters that no font can draw with their code points, U+4E09-82B1, and warn once."""
    text = unicodedata.normalize("NFC", text)  # jamo become syllables, which fonts have
    missing = [character for character in dict.fromkeys(text) if not character.isspace() and font_of(character) is None]
    if missing and not _warned:
        _warned.extend(missing)
        problem = f"no installed font can draw characters such as {''.join(missing[:SHOWN])}"
        advice = "install a font that has them, such as Noto Sans CJK (Debian: apt install fonts-noto-cjk)"
        say(f"{problem}: figures show their code points (U+732B); {advice}")
    parts = []
    for unknown, characters in groupby(text, key=lambda character: character in missing):
        part = "".join(characters)
        parts.append("U+" + "-".join(f"{ord(each):04X}" for each in part) if unknown else part)
    return "".join(parts)


def font_runs(text: str) -> Iterator[tuple[Path, str]]:
    """Split a text from `legible` into parts of one font each; yield the font's file and the part."""
    for path, characters in groupby(text, key=lambda character: font_of(character) or _default_font()):
        yield path, "".join(characters)


def set_fonts(figure: Figure) -> None:
    """Make every text of a figure legible, and set the fonts that it needs."""
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        if isinstance(formatter := axis.get_major_formatter(), FuncFormatter):  # drawing sets the names of ticks again
            axis.set_major_formatter(FuncFormatter(lambda *tick, named=formatter: legible(named(*tick))))
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(legible(text.get_text()))
        families = dict.fromkeys(_family(path) for path, _ in font_runs(text.get_text()))
        if others := [family for family in families if family != _family(_default_font())]:
            text.set_fontfamily([_family(_default_font()), *others])


@cache
def _family(path: Path) -> str:
    """Return the family name of a font, registered with matplotlib if needed."""
    if not any(Path(font.fname) == path for font in font_manager.fontManager.ttflist):
        font_manager.fontManager.addfont(str(path))
    return next(font.name for font in font_manager.fontManager.ttflist if Path(font.fname) == path)


def save(figure: Figure, file: Path | TextIO, kind: str = "png", dpi: int = DOTS_PER_INCH, **metadata: str | None) -> None:
    """Save a figure as `png` or `svg`; the file is bit-identical if the fonts are the same.

    The text of an SVG stays text, which is drawn with the viewer's fonts.
    """
    mark: dict[str, str | None] = {"Creator": MADE_BY, "Date": None} if kind == "svg" else {"Software": MADE_BY}
    if kind == "png":
        set_fonts(figure)
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)  # fallback fonts may have no bold face
    try:
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": MADE_BY}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure.savefig(file, format=kind, dpi=dpi, metadata=mark | metadata)
    finally:
        log.setLevel(level)
