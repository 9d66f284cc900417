"""From a file to pixels: the one way in, for training, prediction, the data check and the server.

Files may be damaged, or made to attack: the content decides and not the name, sizes are looked at before anything is decoded,
and nothing is written. It knows nothing of torch, as the processes that decode (workers.py) are to start fast.
"""

from __future__ import annotations

import io
import stat
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from alexnet.data import metadata, samples
from alexnet.data.kinds import HEAD, image_format
from alexnet.errors import ImageError

# What cameras, phones, browsers and microscopes write. Not all that Pillow opens: EPS, for one, would be run by Ghostscript.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000"]
if find_spec("PIL.AvifImagePlugin"):  # from Pillow 11.3 on
    FORMATS.append("AVIF")
MAX_PIXELS = 120_000_000  # in the file: phones make 108 million
MAX_REPAIRED = 1 << 28  # bytes of a file whose metadata are left out
MAX_DECODED = 50_000_000  # in memory, 4 bytes each, sometimes in three copies; a JPEG may decode at a smaller scale
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limits above are ours


File = Path | bytes  # a file's path, or what is in it
Source = File | Image.Image | NDArray[np.uint8]


def decode(source: Source, reduced_to: int = 1 << 30) -> Image.Image:
    """Return an image as upright 8-bit RGB.

    The first frame of an animation; 16-bit levels are scaled to 8, transparency is laid on white. A JPEG may decode at
    1/2, 1/4 or 1/8 scale, as long as its shorter side is at least `reduced_to` pixels. `source` is a path, a file's bytes, an
    image of Pillow, which is not changed, or H W 3 uint8. Damaged metadata are done without.

    Raises:
        ImageError: the file is missing, empty, not an image, truncated or too large, its format does not say which level is
            white, or the array has another form; the message is the reason alone.
    """
    return noted(source, reduced_to)[0]


def noted(source: Source, reduced_to: int = 1 << 30) -> tuple[Image.Image, ImageError | None]:
    """Return what `decode` does, and the error that metadata would have caused, had they not been left out."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise ImageError(f"{described(source)}, but should be uint8, H x W x 3")
        return Image.fromarray(source), None
    try:
        return _finished(source) if isinstance(source, Image.Image) else _decoded(source, reduced_to), None
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        reason = explained(error)
        if not isinstance(source, Image.Image) and isinstance(error, UnidentifiedImageError):
            reason = ImageError(image_format(_head(source)) or str(reason), reason.kind)
        if isinstance(source, Image.Image) or (plain := plain_bytes(source, reason)) is None:
            raise reason from error
        with suppress(Exception):
            return _decoded(plain, reduced_to), reason
        unread = samples.unread_tiff(plain) if isinstance(error, UnidentifiedImageError) else None
        raise unread or reason from error


def _head(source: File) -> bytes:
    if isinstance(source, bytes):
        return source[:HEAD]
    with source.open("rb") as file:
        return file.read(HEAD)


def _decoded(source: File, reduced_to: int) -> Image.Image:
    with opened(source) as image:
        image.draft(None, _draft_size(image, reduced_to))  # does nothing but for JPEG
        return _finished(image)


def described(array: NDArray[Any]) -> str:
    """Return such as `an array of float32, 40x40x3`."""
    return f"an array of {array.dtype}, {'x'.join(map(str, array.shape)) or 'one number'}"


def load(image: Image.Image) -> None:
    """Decode an image that is open; one that is loaded stays as it is.

    Raises:
        ImageError: it is too large.
        Exception: whatever Pillow raises.
    """
    _limit(image, MAX_DECODED, "decode")
    samples.prepare(image)
    image.load()


def _finished(image: Image.Image) -> Image.Image:
    load(image)
    return metadata.turned(samples.to_rgb(image), metadata.orientation(image))


def plain_bytes(source: File, reason: ImageError) -> bytes | None:
    """Return the bytes of a file that did not decode for `reason`, without its metadata; None if these cannot be why."""
    if reason.kind not in ("corrupt", "truncated", "not an image"):
        return None
    if isinstance(source, Path):
        if not source.is_file() or source.stat().st_size > MAX_REPAIRED:
            return None
        with source.open("rb") as file:
            head = file.read(metadata.HEAD)
            source = head + file.read() if metadata.known(head) else b""
    return metadata.without_metadata(source) if metadata.known(source[: metadata.HEAD]) else None


def opened(source: File) -> Image.Image:
    """Open an image file, whose header alone is read; use it as a context manager.

    Raises:
        ImageError: it is no file, empty, or too large.
        Exception: whatever Pillow raises.
    """
    if isinstance(source, bytes):
        size = len(source)
    else:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise ImageError("not a file", "not an image")
        size = status.st_size
    if size == 0:
        raise ImageError("the file is empty", "empty")
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    _limit(image, MAX_PIXELS, "open")
    return image


def size(source: Source) -> tuple[int, int]:
    """Return width and height in pixels, from the file's header or of an H W 3 array.

    Raises:
        ImageError: as `decode`.
    """
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    if isinstance(source, Image.Image):
        return source.size
    try:
        with opened(source) as image:
            return image.size
    except Exception as error:
        raise explained(error) from error


def stored_pixels(
    source: Source,
    cache_size: int | Literal["full"],
    fit: Literal["crop", "stretch"],
    filter: Literal["bicubic", "nearest"],
    reduced_decode: bool,
) -> NDArray[np.uint8]:
    """Decode an image to what the cache holds: `cache_size` x `cache_size` x 3 uint8, or H W 3 where `cache_size` is full.

    `crop` scales the shorter side to `cache_size` and cuts out the centre; `stretch` scales both sides.

    Raises:
        ImageError: as `decode`.
    """
    if cache_size == "full":
        return np.asarray(decode(source))
    image = decode(source, cache_size if reduced_decode else 1 << 30)
    if image.size == (cache_size, cache_size):
        return np.asarray(image)
    width, height = image.size
    box = centre(width, height) if fit == "crop" else (0, 0, width, height)
    gap = 2.0 if reduced_decode else None
    return np.asarray(image.resize((cache_size, cache_size), FILTERS[filter], box=box, reducing_gap=gap))


def centre(width: int, height: int) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of the largest square in the middle."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def explained(error: Exception) -> ImageError:
    """Return what Pillow or the system raised as the reason that a person reads."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, FileNotFoundError):
        return ImageError("no such file", "missing")
    if isinstance(error, UnidentifiedImageError):
        return ImageError("not an image, or of an unknown kind", "not an image")
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return ImageError("too large to decode", "huge")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    truncated = "truncated" in reason.lower()
    return ImageError(reason.splitlines()[0], "truncated" if truncated else "corrupt")


def _limit(image: Image.Image, pixels: int, what: str) -> None:
    if (count := image.width * image.height) > pixels:
        size = f"{image.width}x{image.height}, {count / 1e6:.0f} megapixels, but {pixels / 1e6:.0f} are the most to {what}"
        raise ImageError(f"{size}: make it smaller", "huge")


def _draft_size(image: Image.Image, reduced_to: int) -> tuple[int, int]:
    """Return the smallest size that JPEG may decode at: both sides in proportion, the shorter one `reduced_to`."""
    scale = min(1.0, reduced_to / min(image.size))
    return max(1, int(image.width * scale)), max(1, int(image.height * scale))
