"""What goes into a page or a picture: images as `data:` addresses, texts without what neither can hold."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

from PIL import Image

# Not text: lone surrogates stand for bytes of a file name that are not UTF-8, and neither they nor controls can be in a page.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def page_text(text: str) -> str:
    """Return `text` with what no page can hold replaced by the replacement character."""
    return UNPRINTABLE.sub("\ufffd", text)


def short(text: str, length: int, *, end: bool = False) -> str:
    """Return `text` on one line, at most so long: its beginning, or with `end` its end."""
    text = " ".join(page_text(text).split())
    if len(text) <= length:
        return text
    return f"…{text[1 - length :]}" if end else f"{text[: length - 1]}…"


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """Return an image, packed as `kind`, as a `data:` address."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
