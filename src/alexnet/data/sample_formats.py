"""Convert samples of any kind to 8-bit RGB, scaled by what the file format defines as white.

The scale never depends on an image's own brightest pixel, so a dark photo stays dark. An image whose format does not define
white (floats, 32-bit and signed integers) is refused.
"""

import io
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from alexnet.errors import ImageError

# Read uncompressed TIFFs with libtiff too: Pillow's own reader reads 16-bit planes as 8-bit ones.
TiffImagePlugin.READ_LIBTIFF = True

ADVICE = "save it as 8- or 16-bit grey or RGB"
NUMBERS = {1: "integer", 2: "signed integer", 3: "floating-point", 4: "integer", 5: "complex", 6: "complex"}  # SampleFormat
BITS, PHOTOMETRIC, BANDS, SAMPLE_FORMAT = 258, 262, 277, 339  # TIFF tags
SUBFILE, SUB_PAGES, DNG_VERSION = 254, 330, 50706  # of these, bit 0 of the first is set if the page is a mere preview
SENSOR = (32803, 34892)  # PhotometricInterpretation of a sensor's levels
NEEDED = (256, 257, BITS, PHOTOMETRIC)  # width and height first
KINDS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}  # TIFF PhotometricInterpretation
SHORT_SCALES = {"L;2": 85, "L;4": 17}  # PNG: factors from 2-bit and 4-bit grey to 8 bits
ROWS = 256  # rows of a 16-bit image to scale at a time


def scale_transparency(image: Image.Image) -> None:
    """Scale the transparent level of a PNG as Pillow will scale its pixels; call this before they are loaded."""
    tiles = getattr(image, "tile", [])  # none once loaded
    if not tiles:
        return
    if image.format == "JPEG2000" and len(image.getbands()) > 1:
        _refuse_wrapped(image)
    level, raw = image.info.get("transparency"), tiles[0][3] if image.format == "PNG" else None
    if raw in SHORT_SCALES and isinstance(level, int):
        image.info["transparency"] = level * SHORT_SCALES[str(raw)]
    elif raw == "RGB;16B" and isinstance(level, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in level)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to 8-bit RGB, with a white background where it is transparent."""
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


def tiff_error(content: bytes) -> ImageError | None:
    """Return an error that names the samples of an unreadable TIFF; None if the file is not a TIFF or is damaged."""
    if not content.startswith(tuple(TiffImagePlugin.PREFIXES)):
        return None
    try:
        tags = _first_page(io.BytesIO(content))
        if not all(tag in tags for tag in NEEDED):
            return None
        kind = KINDS.get(tags.get(PHOTOMETRIC, 0), "colours of an unknown kind")
        return ImageError(f"a TIFF of {tags.get(BANDS, 1)} x {_described(tags)}, {kind}: {ADVICE}", "format")
    except Exception:  # damaged
        return None


def is_raw_photo(source: Path | bytes) -> bool:
    """Return whether a TIFF is a camera's RAW photo: DNG, NEF, ARW and the like, most of which begin with a preview."""
    try:
        with warnings.catch_warnings(), io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            warnings.simplefilter("ignore")
            tags = _first_page(file)
        preview = tags.get(SUBFILE, 0) & 1 and SUB_PAGES in tags
        return bool(preview) or DNG_VERSION in tags or tags.get(PHOTOMETRIC) in SENSOR
    except Exception:  # damaged
        return False


def _first_page(file: BinaryIO) -> Any:
    """Return the tags of a TIFF's first page."""
    head = file.read(16)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if 43 in head[2:4] else 8])  # BigTIFF has a longer head
    file.seek(tags.next)
    tags.load(file)
    return tags


def _refuse_wrapped(image: Image.Image) -> None:
    """Refuse JPEG 2000 colour images of more than 8 bits: in Pillow, white overflows to 0."""
    file = getattr(image, "fp", None)
    if file is not None:
        file.seek(0)
        _, result, header = file.read(1 << 20).partition(b"\xff\x4f\xff\x51")  # sizes follow, then each band's bits - 1
        bits = max((byte & 0x7F for byte in header[38 : 38 + 3 * len(image.getbands()) : 3]), default=0) + 1
        if result and bits > 8:
            raise ImageError(f"a JPEG 2000 colour image of {bits}-bit samples: save it as PNG or TIFF", "format")


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def _described(tags: Any) -> str:
    """Describe the samples of a TIFF: `32-bit floating-point samples`."""
    bits, number = tags.get(BITS, (1,)), tags.get(SAMPLE_FORMAT, (1,))
    return f"{'/'.join(map(str, dict.fromkeys(bits)))}-bit {NUMBERS.get(number[0], 'unknown')} samples"


def _refuse_without_white(image: Image.Image) -> None:
    """Refuse floats, signed and 32-bit integers; Pillow has already scaled Netpbm's integers to 16 bits."""
    tags = _tags(image)
    signed = any(number not in (1, 4) for number in tags.get(SAMPLE_FORMAT, ()))
    if signed or image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        samples = _described(tags) if tags else f"{'floating-point' if image.mode == 'F' else '32-bit integer'} samples"
        raise ImageError(f"{samples}, which do not define white: {ADVICE}", "format")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit levels to 8 bits, a few rows at a time: in float64 the image would take four times its memory."""
    tags, levels = _tags(image), np.asarray(image)
    white = 2 ** tags.get(BITS, (16,))[0] - 1  # Pillow does not scale 12-bit samples
    result: NDArray[np.uint8] = np.empty(levels.shape, dtype=np.uint8)
    for top in range(0, len(levels), ROWS):
        rows = levels[top : top + ROWS]
        part = (rows * (255 / white)).clip(0, 255).round()
        if tags and tags.get(PHOTOMETRIC, 0) == 0:  # zero is white, which Pillow handles for 8 bits only
            part = 255 - part
        if isinstance(transparent := image.info.get("transparency"), int):
            part = np.where(rows == transparent, 255, part)
        result[top : top + ROWS] = part
    return Image.fromarray(result)
