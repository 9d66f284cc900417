"""What all pictures and pages share: colours by name, texts that fit, images as `data:` addresses."""

from __future__ import annotations

import base64
import io
import re
import unicodedata
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

# Okabe and Ito's colours, told apart by colour-blind eyes; the page has a lighter twin of each for dark screens.
BLUE, ORANGE = "#0072b2", "#d55e00"
GREEN, PINK, AMBER, SKY = "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
GREY = "#808080"
NEUTRAL = "#f7f7f7"  # of heat maps: neither for a label nor against it

# Not text: lone surrogates stand for bytes of a file name that are not UTF-8, and neither they nor controls can be in a page.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def page_text(text: str) -> str:
    """Return `text` with what no page can hold replaced by the replacement character."""
    return UNPRINTABLE.sub("\ufffd", text)


def short(text: str, length: int, *, end: bool = False) -> str:
    """Return `text` on one line, at most so many letters wide: its beginning, or with `end` its end."""
    text = " ".join(page_text(text).split())
    if sum(map(_width, text)) <= length:
        return text
    ordered = text[::-1] if end else text
    kept = sum(total < length for total in accumulate(map(_width, ordered)))
    return f"…{ordered[:kept][::-1]}" if end else f"{ordered[:kept]}…"


def _width(character: str) -> int:
    """Return the room of a character in letters: 2 for Chinese, Japanese, Korean and emoji, 0 for marks."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else int(not unicodedata.combining(character))


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """Return an image, packed as `kind`, as a `data:` address."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
