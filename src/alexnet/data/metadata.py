"""What lies beside an image's pixels: which side is up, and how to do without the rest where it is damaged.

Cameras, phones and editors write EXIF, XMP, profiles and comments, and some write them wrong. Nothing of that is a reason to
leave a photo out whose pixels decode.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from numbers import Number

from PIL import Image, TiffTags

ORIENTATION, EXIF = 0x0112, 0x8769  # tags
TURNS = {
    **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
    **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE},
    8: Image.Transpose.ROTATE_90,
}
TEXT, WHOLE, FRACTION = (2,), (3, 4), (5, 10)  # types of TIFF tags
PNG, PNG_KEPT = b"\x89PNG\r\n\x1a\n", (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
TIFFS, AVIF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), b"ftypavif"
HEAD = 16  # bytes that tell the format
JPEG, ADOBE = b"\xff\xd8", 0xEE  # the marker that says how the colours are stored
# TIFF tags that decide the pixels: sizes, samples, compression, strips, tiles, palette, tables of JPEG, YCbCr.
TIFF_KEPT = {254, 256, 257, 258, 259, 262, 266, 273, ORIENTATION, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325}
TIFF_KEPT |= {332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532}


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or it cannot be read.

    A TIFF that is loaded is upright already, and says 1.
    """
    for _ in range(2):  # after an error, what was read before it is there
        with suppress(Exception):
            value = image.getexif().get(ORIENTATION, 1)
            return int(value) if value in TURNS else 1
    return 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image as it is to be looked at.

    `ImageOps.exif_transpose` would write all EXIF data anew, and fail where some of it is odd.
    """
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def oddity(image: Image.Image) -> str:
    """Return what is odd about an opened image's EXIF data; empty where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what Pillow only warns of
        try:
            exif = image.getexif()
            values = [*exif.items(), *exif.get_ifd(EXIF).items()]
        except Exception as error:
            return f"EXIF data: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    if (value := exif.get(ORIENTATION, 1)) not in range(1, 9):
        return f"EXIF orientation is {value!r:.40}, not 1 to 8"
    for tag, value in values:
        known = TiffTags.lookup(tag)
        text, number = isinstance(value, str | bytes), isinstance(value, Number)
        wrong = (known.type in TEXT and not text) or (known.type in WHOLE + FRACTION and known.length == 1 and not number)
        if wrong or (known.type == 5 and number and value < 0):
            return f"EXIF {known.name} is {value!r:.40}"
    return ""


def known(head: bytes) -> bool:
    """Return whether `without_metadata` can do something for a file with these first bytes, `HEAD` of them."""
    return head.startswith((PNG, JPEG, *TIFFS)) or head[4:12] == AVIF


def without_metadata(content: bytes) -> bytes:
    """Return the bytes of a JPEG, PNG, TIFF or AVIF file with the pixels' own parts alone; of others, as they are.

    What cannot be taken apart stays as it is, too.
    """
    with suppress(struct.error, IndexError):
        if content.startswith(PNG):
            return PNG + b"".join(_png_chunks(content))
        if content.startswith(JPEG):
            return b"".join(_jpeg_segments(content))
        if content.startswith(TIFFS):
            return _plain_tiff(content)
        if content[4:12] == AVIF:  # an item of EXIF data becomes one of a kind that nobody reads
            return re.sub(rb"(infe.{8})Exif", rb"\1free", content, flags=re.DOTALL)
    return content


def _png_chunks(content: bytes) -> Iterator[bytes]:
    """Yield the chunks that decide the pixels; a chunk whose length is damaged ends where the next of these begins."""
    at = len(PNG)
    while at + 8 <= len(content):
        (length,), kind = struct.unpack_from(">I", content, at), content[at + 4 : at + 8]
        end = at + 12 + length
        whole = content[end - 4 : end] == struct.pack(">I", zlib.crc32(content[at + 4 : end - 4]))
        if kind in PNG_KEPT:
            if kind != b"tRNS" or whole:
                yield content[at:end]
        elif not whole and not re.match(rb"[A-Za-z]{4}", content[end + 4 : end + 8]):
            result = re.compile(b"|".join(PNG_KEPT)).search(content, at + 8)
            end = result.start() - 4 if result else len(content)
        at = end


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """Yield the segments before the pixels but those of applications and comments, then the rest."""
    at = 2
    yield content[:at]
    while content[at] == 0xFF and (marker := content[at + 1]) != 0xDA:
        if marker == 0xFF:  # filling
            at += 1
            continue
        (length,) = struct.unpack_from(">H", content, at + 2)
        if marker == ADOBE or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            yield content[at : at + 2 + length]
        at += 2 + length
    yield content[at:]


def _plain_tiff(content: bytes) -> bytes:
    """Leave only the entries of the first page that decide its pixels."""
    order, big = "<" if content[:2] == b"II" else ">", 43 in content[2:4]
    count_form, size, offset_form = ("Q", 20, "Q") if big else ("H", 12, "I")
    (start,) = struct.unpack_from(order + offset_form, content, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_form, content, start)
    first = start + struct.calcsize(count_form)
    entries = [content[at : at + size] for at in range(first, min(first + count * size, len(content)), size)]
    kept = [entry for entry in entries if _kept(entry, order)]
    directory = struct.pack(order + count_form, len(kept)) + b"".join(kept) + bytes(struct.calcsize(offset_form))
    return content[:start] + directory + content[start + len(directory) :]


def _kept(entry: bytes, order: str) -> bool:
    tag, kind, count = struct.unpack_from(f"{order}HH{'Q' if len(entry) == 20 else 'I'}", entry)
    return tag in TIFF_KEPT and (tag != ORIENTATION or (kind, count) == (3, 1))
