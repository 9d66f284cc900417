"""Helpers for figures and HTML pages: colours, text that fits, images as `data:` URIs."""

import base64
import io
import re
import unicodedata
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

# The colour-blind safe palette of Okabe and Ito; the page has a lighter shade of each in dark mode.
BLUE, ORANGE = "#0072b2", "#d55e00"
GREEN, PINK, AMBER, SKY = "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
GREY = "#808080"
NEUTRAL = "#f7f7f7"  # zero in heat maps: neither for nor against a label

# Control characters, and the lone surrogates that stand for bytes of a file name that are not UTF-8: a page can hold neither.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def page_text(text: str) -> str:
    """Replace the characters that no HTML page can contain with U+FFFD."""
    return UNPRINTABLE.sub("\ufffd", text)


def shorten(text: str, length: int, *, end: bool = False) -> str:
    """Shorten `text` to one line, `length` columns wide at most; keep its beginning, or with `end` its end."""
    text = " ".join(page_text(text).split())
    if sum(map(_width, text)) <= length:
        return text
    ordered = text[::-1] if end else text
    kept = sum(total < length for total in accumulate(map(_width, ordered)))
    return f"…{ordered[:kept][::-1]}" if end else f"{ordered[:kept]}…"


def _width(character: str) -> int:
    """Return the width of a character in columns: 2 for Chinese, Japanese, Korean and emoji, 0 for combining marks."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else int(not unicodedata.combining(character))


def data_uri(image: "Image.Image", kind: str, **options: Any) -> str:
    """Encode an image as `kind`, such as `png`, and return it as a `data:` URI."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file_uri(file.getvalue(), kind)


def file_uri(content: bytes, kind: str) -> str:
    """Return the bytes of an image file of type `kind`, such as `png`, as a `data:` URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
