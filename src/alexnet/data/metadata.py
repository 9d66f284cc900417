"""Image metadata: read the orientation, report invalid EXIF data, and strip metadata that keeps an image from decoding.

Some cameras and editors write invalid EXIF, XMP, profiles or comments. A photo whose pixels decode is used all the same.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from numbers import Number

from PIL import Image, TiffTags

MAKE, ORIENTATION, EXIF = 0x010F, 0x0112, 0x8769  # tags
TURNS = {
    **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
    **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE},
    8: Image.Transpose.ROTATE_90,
}
TEXT, WHOLE, FRACTION = (2,), (3, 4), (5, 10)  # types of TIFF tags
PNG, PNG_KEPT = b"\x89PNG\r\n\x1a\n", (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEIF = re.compile(rb".{4}ftyp(?:avi[fs]|he[iv].|m[is]f1)", re.DOTALL)  # HEIC and AVIF
HEAD = 16  # bytes that identify the format
JPEG, ADOBE = b"\xff\xd8", 0xEE  # the Adobe marker defines the colour space
# TIFF tags needed to decode: sizes, samples, compression, strips, tiles, palette, JPEG tables, YCbCr.
TIFF_KEPT = {254, 256, 257, 258, 259, 262, 266, 273, ORIENTATION, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325}
TIFF_KEPT |= {332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532}


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, or 1 if it is missing or unreadable.

    It is 1 for a loaded TIFF too, which Pillow has already turned upright, and for a HEIC photo, whose container turns it.
    """
    if image.format == "HEIF":
        return 1
    for _ in range(2):  # after an error, the second call returns what was read before it
        with suppress(Exception):
            value = image.getexif().get(ORIENTATION, 1)
            return int(value) if value in TURNS else 1
    return 1


def camera_make(image: Image.Image) -> str | None:
    """Return the manufacturer of the camera that an opened image is from; None if its EXIF data does not say."""
    with suppress(Exception):
        value = image.getexif().get(MAKE)
        return str(value).strip("\0 ") or None if isinstance(value, str) else None
    return None


def find_invalid_exif(image: Image.Image) -> str:
    """Describe what is invalid in the EXIF data of an opened image; empty if nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow only warns about some errors
        try:
            exif = image.getexif()
            values = [*exif.items(), *exif.get_ifd(EXIF).items()]
        except Exception as error:
            return f"EXIF data: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    if (value := exif.get(ORIENTATION, 1)) not in range(1, 9):
        return f"EXIF orientation is {value!r:.40}, not 1 to 8"
    for tag, value in values:
        info = TiffTags.lookup(tag)
        text, number = isinstance(value, str | bytes), isinstance(value, Number)
        wrong = (info.type in TEXT and not text) or (info.type in WHOLE + FRACTION and info.length == 1 and not number)
        if wrong or (info.type == 5 and number and value < 0):
            return f"EXIF {info.name} is {value!r:.40}"
    return ""


def can_strip(head: bytes) -> bool:
    """Return whether `strip_metadata` supports a file with these first `HEAD` bytes."""
    return head.startswith((PNG, JPEG, *TIFFS)) or bool(HEIF.match(head))


def strip_metadata(content: bytes) -> bytes:
    """Strip a JPEG, PNG, TIFF, AVIF or HEIC file of all that its pixels do not need.

    Other formats, and files that cannot be parsed, are returned unchanged.
    """
    with suppress(struct.error, IndexError):
        if content.startswith(PNG):
            return PNG + b"".join(_png_chunks(content))
        if content.startswith(JPEG):
            return b"".join(_jpeg_segments(content))
        if content.startswith(TIFFS):
            return _plain_tiff(content)
        if HEIF.match(content):  # mark the items of EXIF and XMP data as a type that decoders ignore
            return re.sub(rb"(infe.{8})(?:Exif|mime)", rb"\1free", content, flags=re.DOTALL)
    return content


def _png_chunks(content: bytes) -> Iterator[bytes]:
    """Yield the chunks that the pixels need; skip a chunk of damaged length up to the next of those."""
    start = len(PNG)
    while start + 8 <= len(content):
        (length,), kind = struct.unpack_from(">I", content, start), content[start + 4 : start + 8]
        end = start + 12 + length
        intact = content[end - 4 : end] == struct.pack(">I", zlib.crc32(content[start + 4 : end - 4]))
        if kind in PNG_KEPT:
            if kind != b"tRNS" or intact:
                yield content[start:end]
        elif not intact and not re.match(rb"[A-Za-z]{4}", content[end + 4 : end + 8]):
            result = re.compile(b"|".join(PNG_KEPT)).search(content, start + 8)
            end = result.start() - 4 if result else len(content)
        start = end


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """Yield the segments without application data and comments, then the scan data."""
    start = 2
    yield content[:start]
    while content[start] == 0xFF and (marker := content[start + 1]) != 0xDA:
        if marker == 0xFF:  # padding
            start += 1
            continue
        (length,) = struct.unpack_from(">H", content, start + 2)
        if marker == ADOBE or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            yield content[start : start + 2 + length]
        start += 2 + length
    yield content[start:]


def _plain_tiff(content: bytes) -> bytes:
    """Keep only the entries of the first page that its pixels need."""
    order, big = "<" if content[:2] == b"II" else ">", 43 in content[2:4]
    count_form, size, offset_form = ("Q", 20, "Q") if big else ("H", 12, "I")
    (start,) = struct.unpack_from(order + offset_form, content, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_form, content, start)
    first = start + struct.calcsize(count_form)
    entries = [content[i : i + size] for i in range(first, min(first + count * size, len(content)), size)]
    kept = [entry for entry in entries if _kept(entry, order)]
    directory = struct.pack(order + count_form, len(kept)) + b"".join(kept) + bytes(struct.calcsize(offset_form))
    return content[:start] + directory + content[start + len(directory) :]


def _kept(entry: bytes, order: str) -> bool:
    tag, kind, count = struct.unpack_from(f"{order}HH{'Q' if len(entry) == 20 else 'I'}", entry)
    return tag in TIFF_KEPT and (tag != ORIENTATION or (kind, count) == (3, 1))
