"""Decode image files, for training, prediction, the data check and the server.

Files may be damaged or hostile: the format is found from the content, not the name, and sizes are checked before decoding.
torch is not imported, so that decoding processes (decode_worker.py) start fast.
"""

import io
import re
import stat
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from alexnet.data import heic, metadata, sample_formats
from alexnet.errors import ImageError

# Formats of cameras, browsers and microscopes, besides HEIC (heic.py). Not all of Pillow's: it would run Ghostscript for EPS.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000"]
if find_spec("PIL.AvifImagePlugin"):  # from Pillow 11.3 on
    FORMATS.append("AVIF")
MAX_PIXELS = 120_000_000  # in a file; phones have cameras of 108 million
MAX_REPAIRED = 1 << 28  # bytes of a file to strip of metadata
MAX_DECODED = 50_000_000  # pixels in memory, at 4 bytes and up to three copies; a JPEG may decode at a smaller scale
FILTERS = {name: Image.Resampling[name.upper()] for name in ("bicubic", "bilinear", "nearest")}
LONGEST = 1 << 18  # pixels of the longer side of an image that is scaled whole

# Kinds of unreadable files, by their first bytes, and what to do about them.
HEAD = 512  # bytes to read
RAW = re.compile(rb"II\*\0.{4}CR|FUJIFILMCCD-RAW|II(?:R[OS]|U\0)|MMOR|\0MRM|FOVb|.{6}HEAPCCDR|.{4}ftypcrx ", re.DOTALL)
RAW_PHOTO = "a camera's RAW photo: save it as JPEG"
JPEG_SIZES = re.compile(rb"\xff[\xc0-\xc3]..(.)", re.DOTALL)  # a frame header, whose first field is the bits per sample
KINDS = (
    (re.compile(rb".{4}ftyp(avi|mif|msf)", re.DOTALL), "an AVIF image, damaged or in need of a newer Pillow: save it as JPEG"),
    (re.compile(rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", re.DOTALL), "a video: save frames of it as images"),
    (re.compile(rb".{128}DICM", re.DOTALL), "a DICOM file: save it as PNG, all on one scale"),
    (re.compile(rb".{344}(?:n\+1|ni1)\0", re.DOTALL), "a NIfTI file: save its slices as PNG, all on one scale"),
    (re.compile(rb"\x93NUMPY|\x89HDF"), "a file of arrays: save them as PNG, all on one scale"),
    (re.compile(rb"8BPS"), "a Photoshop file: save it as PNG"),
    (re.compile(rb"\xff\x0a|\0{3}\x0cJXL "), "a JPEG XL image: save it as PNG"),
    (re.compile(rb"%PDF|%!PS"), "a PDF or PostScript file: save its pages as PNG"),
    (re.compile(rb"(?:<\?xml.*)?\s*(?:<!--.*)?<svg", re.DOTALL), "an SVG drawing: save it as PNG"),
    (re.compile(rb"\s*<(?:!doctype )?html", re.IGNORECASE), "a web page: download the image itself"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS: run git lfs pull"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "an archive: unpack it"),
)

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limits above are ours


File = Path | bytes  # the path or the content of a file
Source = File | Image.Image | NDArray[np.uint8]


def decode(source: Source, reduced_to: int = 1 << 30) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    Of an animation, the first frame is used; 16-bit levels are scaled to 8 bits; transparent images get a white background;
    damaged metadata are ignored. A JPEG may decode at 1/2, 1/4 or 1/8 scale if its shorter side stays at least `reduced_to`
    pixels. `source` is a path, the bytes of a file, a Pillow image, which is not changed, or H W 3 uint8.
    """
    return decode_with_damage(source, reduced_to)[0]


def decode_with_damage(source: Source, reduced_to: int = 1 << 30) -> tuple[Image.Image, ImageError | None]:
    """Decode an image as `decode` does; return it with the error that its damaged metadata caused, if any."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise ImageError(f"{describe_array(source)}, but should be uint8, H x W x 3")
        return Image.fromarray(source), None
    if isinstance(source, Image.Image):
        try:
            return _to_upright_rgb(source), None
        except Exception as error:  # Pillow raises many types on damaged files
            raise to_image_error(error) from error
    try:
        return _decode_file(source, reduced_to), None
    except Exception as error:
        reason = to_image_error(error)
        if isinstance(error, UnidentifiedImageError) and (named := describe_file(source)):
            reason = ImageError(named, "not an image")
        if (plain := strip_damaged_metadata(source, reason)) is None:
            raise reason from error
        with suppress(Exception):
            return _decode_file(plain, reduced_to), reason
        unread = sample_formats.tiff_error(plain) if isinstance(error, UnidentifiedImageError) else None
        raise unread or reason from error


def describe_file(source: File) -> str:
    """Return the kind of an unreadable file, by its first bytes, and what to do about it; empty if it is unknown."""
    head = _read_head(source)
    if _is_raw_photo(source, head):
        return RAW_PHOTO
    if head.startswith(b"\xff\xd8") and (sizes := JPEG_SIZES.search(head)) and sizes[1] in b"\x0c\x10":
        return f"a JPEG of {sizes[1][0]}-bit samples: save it as PNG or TIFF"
    return next((description for pattern, description in KINDS if pattern.match(head)), "")


def _read_head(source: File) -> bytes:
    if isinstance(source, bytes):
        return source[:HEAD]
    with source.open("rb") as file:
        return file.read(HEAD)


def _is_raw_photo(source: File, head: bytes) -> bool:
    return bool(RAW.match(head)) or (head.startswith(metadata.TIFFS) and sample_formats.is_raw_photo(source))


def _decode_file(source: File, reduced_to: int) -> Image.Image:
    with open_image(source) as image:
        scale = min(1.0, reduced_to / min(image.size))
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        image.draft(None, size)  # decodes a JPEG at the smallest scale that is at least this size
        return _to_upright_rgb(image)


def describe_array(array: NDArray[Any]) -> str:
    """Describe an array for a message: `an array of float32, 40x40x3`."""
    return f"an array of {array.dtype}, {'x'.join(map(str, array.shape)) or 'one number'}"


def load(image: Image.Image) -> None:
    """Load the pixels of an opened image, if they are not loaded yet."""
    _check_size(image, MAX_DECODED, "decode")
    sample_formats.scale_transparency(image)
    image.load()


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    load(image)
    turn = metadata.TURNS.get(metadata.orientation(image))
    upright = sample_formats.to_rgb(image)
    # `ImageOps.exif_transpose` would rewrite all EXIF data, and fail if some of it is invalid.
    return upright if turn is None else upright.transpose(turn)


def strip_damaged_metadata(source: File, reason: ImageError) -> bytes | None:
    """Return the bytes of a file without its metadata; None if, by the error `reason`, metadata cannot be the cause."""
    if reason.kind not in ("corrupt", "truncated", "not an image") or str(reason) == RAW_PHOTO:
        return None
    if isinstance(source, Path):
        if not source.is_file() or source.stat().st_size > MAX_REPAIRED:
            return None
        with source.open("rb") as file:
            head = file.read(metadata.HEAD)
            source = head + file.read() if metadata.can_strip(head) else b""
    return metadata.strip_metadata(source) if metadata.can_strip(source[: metadata.HEAD]) else None


def open_image(source: File) -> Image.Image:
    """Open an image file as a context manager, reading only its header; a HEIC file in a decoding process only."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise ImageError("not a file", "not an image")
        size = status.st_size
    if size == 0:
        raise ImageError("the file is empty", "empty")
    head = _read_head(source)
    if heic.is_heic(head):
        image: Image.Image = heic.HeicImage(source if isinstance(source, bytes) else source.read_bytes())
    elif _is_raw_photo(source, head):
        raise ImageError(RAW_PHOTO, "not an image")  # in it, Pillow would find the preview
    else:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    _check_size(image, MAX_PIXELS, "open")
    return image


def is_image(file: Path) -> bool:
    """Return whether a file begins as an image does, whatever its name."""
    with suppress(Exception):  # Pillow raises many types
        if heic.is_heic(_read_head(file)):
            return True
        with open_image(file):
            return True
    return False


def size(source: Source) -> tuple[int, int]:
    """Return the width and height of an image in pixels; of a file, only the header is read."""
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    if isinstance(source, Image.Image):
        return source.size
    try:
        with open_image(source) as image:
            return image.size
    except Exception as error:
        raise to_image_error(error) from error


def stored_pixels(
    source: Source,
    cache_size: int | Literal["full"],
    fit: Literal["crop", "stretch", "torchvision"] = "crop",
    filter: Literal["bicubic", "bilinear", "nearest"] = "bicubic",
    reduced_decode: bool = True,
) -> NDArray[np.uint8]:
    """Decode an image as the cache stores it: `cache_size` x `cache_size` x 3 uint8, or H W 3 if `cache_size` is full.

    `crop` scales the shorter side to `cache_size` and crops the centre; `stretch` scales both sides; `torchvision` crops the
    scaled image at whole pixels.
    """
    if cache_size == "full":
        return np.asarray(decode(source))
    image = decode(source, cache_size if reduced_decode else 1 << 30)
    if image.size == (cache_size, cache_size):
        return np.asarray(image)
    width, height = image.size
    box = centre_square(width, height) if fit == "crop" else (0.0, 0.0, float(width), float(height))
    if fit == "torchvision":
        return np.asarray(_resize_and_crop(image, cache_size, FILTERS[filter]))
    if box[2] - box[0] == box[3] - box[1] == cache_size and box[0].is_integer() and box[1].is_integer():
        return np.asarray(image.crop(box))  # what `resize` would return, sooner
    gap = 2.0 if reduced_decode else None
    return np.asarray(image.resize((cache_size, cache_size), FILTERS[filter], box=box, reducing_gap=gap))


def _resize_and_crop(image: Image.Image, side: int, filter: Image.Resampling) -> Image.Image:
    """Return what torchvision's `Resize(side)` and `CenterCrop(side)` make of an image.

    The longer side is rounded down; where a crop cannot be central, it begins at the even pixel of the two.
    """
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    if max(width, height) <= LONGEST:
        return image.resize((width, height), filter).crop((left, top, left + side, top + side))
    # The crop alone, to save memory; Pillow then rounds some grey levels the other way.
    x, y = image.width / width, image.height / height
    return image.resize((side, side), filter, box=(left * x, top * y, (left + side) * x, (top + side) * y))


def centre_square(width: int, height: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the largest centred square."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def to_image_error(error: Exception) -> ImageError:
    """Convert an exception of Pillow or the system to an `ImageError` with a readable reason."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, FileNotFoundError):
        return ImageError("no such file", "missing")
    if isinstance(error, UnidentifiedImageError):
        return ImageError("not an image, or of an unknown format", "not an image")
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return ImageError("too large to decode", "huge")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    truncated = "truncated" in reason.lower()
    return ImageError(reason.splitlines()[0], "truncated" if truncated else "corrupt")


def _check_size(image: Image.Image, limit: int, action: str) -> None:
    if (count := image.width * image.height) > limit:
        size = f"{image.width}x{image.height}, {count / 1e6:.0f} megapixels, but the limit to {action} is {limit / 1e6:.0f}"
        raise ImageError(f"{size}: make it smaller", "huge")
