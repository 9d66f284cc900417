"""Texts of others in pictures: the installed fonts that can draw them, and what stands for characters that none can."""

from __future__ import annotations

import logging
import unicodedata
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from alexnet.files import MADE_BY
from alexnet.progress import say

PREFERRED = ("noto", "droid", "cjk", "wqy", "arial", "hiragino", "pingfang", "yahei", "gothic")  # in a file's name: sans serif
SELECTORS = "\ufe0e\ufe0f"  # of emoji in black and white, or in colour
DOTS_PER_INCH = 110  # of pictures in files of their own
SHOWN = 10  # characters of a message
_told: list[str] = []  # what was said of characters that no font has: once is enough


@cache
def _main() -> Path:
    """Return DejaVu Sans, which comes with matplotlib."""
    return Path(font_manager.findfont("DejaVu Sans"))


@cache
def _installed() -> list[Path]:
    """Return the other fonts of this machine as they are now: matplotlib's own list is as old as its cache."""
    result = {Path(path) for path in font_manager.findSystemFonts()} - {_main()}

    def order(path: Path) -> tuple[bool, bool, str]:
        name = path.name.lower()
        return not any(word in name for word in PREFERRED), "regular" not in name, str(path)

    return sorted(result, key=order)


@cache
def _characters(path: Path) -> frozenset[int]:
    """Return what a font can draw; nothing if it is damaged or made of bitmaps, as emoji in colour are."""
    try:
        font = FT2Font(str(path))
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def font_of(character: str) -> Path | None:
    """Return the file of the first font that has a character, None if there is none; blanks, joiners and the like need none."""
    if ord(character) in _characters(_main()) or unicodedata.category(character) in ("Zs", "Cf") or character in SELECTORS:
        return _main()
    return next((path for path in _installed() if ord(character) in _characters(path)), None)


def _tell(missing: str) -> None:
    if _told:
        return
    _told.append(missing)
    say(
        f"no installed font can draw characters such as {missing[:SHOWN]}: pictures show their numbers (U+732B); "
        "install a font that has them, such as Noto Sans CJK (Debian: apt install fonts-noto-cjk)"
    )


def legible(text: str) -> str:
    """Return `text` with characters that no font can draw as their numbers, U+4E09-82B1; said once."""
    text = unicodedata.normalize("NFC", text)  # jamo become syllables, which fonts have
    missing = [character for character in dict.fromkeys(text) if not character.isspace() and font_of(character) is None]
    if missing:
        _tell("".join(missing))
    parts = []
    for unknown, characters in groupby(text, key=lambda character: character in missing):
        part = "".join(characters)
        parts.append("U+" + "-".join(f"{ord(each):04X}" for each in part) if unknown else part)
    return "".join(parts)


def runs(text: str) -> Iterator[tuple[Path, str]]:
    """Yield the parts of a legible text, each with the file of the font that draws it."""
    for path, characters in groupby(text, key=lambda character: font_of(character) or _main()):
        yield path, "".join(characters)


def fit(figure: Figure) -> None:
    """Let each text of a figure be legible, and take the fonts that it needs."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(legible(text.get_text()))
        families = dict.fromkeys(_family(path) for path, _ in runs(text.get_text()))
        if others := [family for family in families if family != _family(_main())]:
            text.set_fontfamily([_family(_main()), *others])


@cache
def _family(path: Path) -> str:
    """Return the name by which matplotlib finds a font, which it may have to be told of."""
    if not any(Path(font.fname) == path for font in font_manager.fontManager.ttflist):
        font_manager.fontManager.addfont(str(path))
    return next(font.name for font in font_manager.fontManager.ttflist if Path(font.fname) == path)


def save(figure: Figure, path: Path, kind: str, **how: object) -> None:
    """Draw a figure into a file, `png` or `svg`; the texts of an SVG are left to the fonts of who looks at it."""
    if kind == "png":
        fit(figure)
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)  # a fallback need not be there in bold
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure.savefig(path, format=kind, **how)  # type: ignore[arg-type]
    finally:
        log.setLevel(level)


def save_png(figure: Figure, path: Path) -> None:
    """Draw a figure to a PNG file, the same bytes each time on the same fonts."""
    save(figure, path, "png", dpi=DOTS_PER_INCH, metadata={"Software": MADE_BY})
