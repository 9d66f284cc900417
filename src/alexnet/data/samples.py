"""What an image's numbers mean: levels of any kind to 8-bit RGB, by the file's format and never by its own brightest pixel.

So images stay comparable with each other: a dark photo stays dark. Where a format does not say which level is white (floats,
32-bit and signed integers) the image is refused by name.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from alexnet.errors import ImageError

# Read through libtiff whatever is not compressed, too: Pillow's own reader takes planes of 16 bits for planes of 8.
TiffImagePlugin.READ_LIBTIFF = True

WAY_OUT = "save it as 8- or 16-bit grey or RGB"
NUMBERS = {
    1: "integer",
    2: "signed integer",
    3: "floating-point",
    4: "integer",
    5: "complex",
    6: "complex",
}  # TIFF
BITS, PHOTOMETRIC, BANDS, SAMPLE_FORMAT = 258, 262, 277, 339  # TIFF tags
NEEDED = (256, 257, BITS, PHOTOMETRIC)  # width and height first
KINDS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}  # TIFF PhotometricInterpretation
SHORT_SCALES = {"L;2": 85, "L;4": 17}  # PNG: from grey of few bits to 8
ROWS = 256  # of an image of 16 bits, scaled at a time


def prepare(image: Image.Image) -> None:
    """Bring the transparent level of a PNG to the scale that its pixels will have; to be called before they are loaded.

    Raises:
        ImageError: Pillow would read the samples wrong.
    """
    if image.format == "JPEG2000" and len(image.getbands()) > 1 and getattr(image, "tile", None):
        _refuse_wrapped(image)
    tiles = getattr(image, "tile", [])  # none once loaded
    level, raw = image.info.get("transparency"), tiles[0][3] if image.format == "PNG" and tiles else None
    if raw in SHORT_SCALES and isinstance(level, int):
        image.info["transparency"] = level * SHORT_SCALES[str(raw)]
    elif raw == "RGB;16B" and isinstance(level, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in level)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image as 8-bit RGB, transparency laid on white.

    Raises:
        ImageError: its format does not say which level is white.
    """
    if (sixteen := image.mode.startswith("I;16")) or image.mode in ("I", "F") or _tags(image).get(SAMPLE_FORMAT):
        _refuse_without_white(image)
    if sixteen or image.mode == "I":
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def unread_tiff(content: bytes) -> ImageError | None:
    """Return why a TIFF is not read, by what its samples are; None for what is no TIFF."""
    if not content.startswith(tuple(TiffImagePlugin.PREFIXES)):
        return None
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if 43 in content[2:4] else 8])  # BigTIFF has a longer head
        file = io.BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        if not all(tag in tags for tag in NEEDED):
            return None
        kind = KINDS.get(tags.get(PHOTOMETRIC, 0), "colours of an unknown kind")
        return ImageError(f"a TIFF of {tags.get(BANDS, 1)} x {_described(tags)}, {kind}: {WAY_OUT}", "format")
    except Exception:  # a damaged one
        return None


def _refuse_wrapped(image: Image.Image) -> None:
    """Refuse JPEG 2000 in colour of more than 8 bits: Pillow rounds its white up to 256, which becomes 0."""
    file = getattr(image, "fp", None)
    if file is not None:
        file.seek(0)
        _, result, header = file.read(1 << 20).partition(b"\xff\x4f\xff\x51")  # then sizes, and each band's bits less one
        bits = max((byte & 0x7F for byte in header[38 : 38 + 3 * len(image.getbands()) : 3]), default=0) + 1
        if result and bits > 8:
            raise ImageError(f"a JPEG 2000 in colour of {bits}-bit samples: save it as PNG or TIFF", "format")


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def _described(tags: Any) -> str:
    """Return such as `32-bit floating-point samples`."""
    bits, number = tags.get(BITS, (1,)), tags.get(SAMPLE_FORMAT, (1,))
    return f"{'/'.join(map(str, dict.fromkeys(bits)))}-bit {NUMBERS.get(number[0], 'unknown')} samples"


def _refuse_without_white(image: Image.Image) -> None:
    """Refuse floats, signed and 32-bit integers; Netpbm's integers are scaled to 16 bits already."""
    tags = _tags(image)
    signed = any(number not in (1, 4) for number in tags.get(SAMPLE_FORMAT, ()))
    if signed or image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        samples = _described(tags) if tags else f"{'floating-point' if image.mode == 'F' else '32-bit integer'} samples"
        raise ImageError(f"{samples}, of which no level is known to be white: {WAY_OUT}", "format")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit levels, a few rows at a time: in float64 the whole would take four times its size."""
    tags, levels = _tags(image), np.asarray(image)
    white = 2 ** tags.get(BITS, (16,))[0] - 1  # 12 bits are not scaled when they are read
    result: NDArray[np.uint8] = np.empty(levels.shape, dtype=np.uint8)
    for top in range(0, len(levels), ROWS):
        rows = levels[top : top + ROWS]
        part = (rows * (255 / white)).clip(0, 255).round()
        if tags and tags.get(PHOTOMETRIC, 0) == 0:  # white is zero, which Pillow heeds for 8 bits alone
            part = 255 - part
        if isinstance(transparent := image.info.get("transparency"), int):
            part = np.where(rows == transparent, 255, part)
        result[top : top + ROWS] = part
    return Image.fromarray(result)
