"""Open HEIC photos (HEVC images in a HEIF container), which iPhones and many cameras write, with libheif.

The primary image is decoded; thumbnails, depth and gain maps, and the other images of a burst are ignored. It is upright: the
container says how to turn it, and by the HEIF standard (ISO/IEC 23008-12) the EXIF orientation, which phones write as well, is
ignored.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexnet.errors import ImageError

BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}  # share `mif1` and `msf1`
ROWS = 256  # rows of a 10- or 12-bit image to scale at a time
NEEDED = (b"ftyp", b"meta", b"mdat")  # boxes; phones append others, which may be damaged
SHORT = "a HEIC photo that is truncated: its file ends too early"
MISSING = "a HEIC photo: install pi-heif to read it (pip install pi-heif), or save it as JPEG"


def is_heic(head: bytes) -> bool:
    """Return whether a file that begins with `head` is in HEIF, but not AVIF, by the brands it declares."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
    return head[4:8] == b"ftyp" and bool(brands & BRANDS) and not brands & AVIF_BRANDS


class HeicImage(Image.Image):
    """The primary image of a HEIC file; like other images of Pillow, it is decoded when its pixels are loaded."""

    format = "HEIF"

    def __init__(self, content: bytes) -> None:
        super().__init__()
        try:
            import pi_heif  # here, as it takes 20 ms
        except ImportError as error:
            raise ImageError(MISSING, "not an image") from error
        pi_heif.options.DECODE_THREADS = 0  # there is a decoding process for each processor
        pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
        check_complete(content)
        try:
            images = pi_heif.open_heif(content, convert_hdr_to_8bit=False, hdr_to_16bit=False)
        except Exception as error:
            raise _to_image_error(error) from error
        self._primary = next((image for image in images if image.info["primary"]), None)
        if self._primary is None or 0 in self._primary.size:
            raise ImageError("a HEIC photo whose primary image is damaged")
        self.n_frames = len(images)
        self._size = self._primary.size
        self._mode = self._primary.mode.partition(";")[0].replace("I", "L")
        if exif := self._primary.info["exif"]:
            self.info["exif"] = exif

    def load(self) -> Any:
        """Decode the pixels, scaled to 8 bits, unless they are loaded already."""
        if self._primary is not None:
            primary, self._primary = self._primary, None
            try:
                levels = np.asarray(primary)
            except Exception as error:
                raise _to_image_error(error) from error
            if levels.dtype != np.uint8:
                levels = _eight_bits(levels, primary.info["bit_depth"])
            self._size = primary.size
            self.im = Image.frombytes(self._mode, self._size, np.ascontiguousarray(levels)).im
        return super().load()


def _eight_bits(levels: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    scaled = (np.arange(1 << 16) * (255 / (2**bits - 1))).clip(0, 255).round().astype(np.uint8)
    return np.concatenate([scaled[levels[top : top + ROWS]] for top in range(0, len(levels), ROWS)])


def _to_image_error(error: Exception) -> ImageError:
    if isinstance(error, MemoryError):
        return ImageError("too large to decode", "huge")
    reason = str(error).partition("\n")[0] or type(error).__name__
    return ImageError(f"a HEIC photo that cannot be decoded: {reason}")


# Completeness -------------------------------------------------------------------------------------------------------------


def check_complete(content: bytes) -> None:
    """Raise ImageError if a file ends too early, or if data of its images are missing.

    A phone's photo is a grid of tiles. Where the data of a tile are missing, libheif leaves it black, without an error.
    """
    file = memoryview(content)
    outer = dict(_boxes(file))
    if not outer.keys() & {b"meta", b"moov"}:
        raise ImageError(SHORT, "truncated")
    with suppress(KeyError, IndexError, struct.error):  # damaged: libheif will say how
        for parts in _coded_images(outer[b"meta"][4:]):
            if any(part.stop > len(file) for part in parts):
                raise ImageError(SHORT, "truncated")
            if not _whole_units(b"".join(file[part] for part in parts)):
                raise ImageError("a HEIC photo that lacks a part of its data")


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the kind and the content of each box; ImageError if one that is needed ends too early."""
    while len(content) >= 8:
        size, kind = struct.unpack_from(">I4s", content)
        start = 8
        if size == 1:  # a box of 4 GB or more
            (size,), start = struct.unpack_from(">Q", content, 8), 16
        size = size or len(content)  # 0: up to the end
        if size > len(content) and kind in NEEDED:
            raise ImageError(SHORT, "truncated")
        if not start <= size <= len(content):
            return
        yield kind, content[start:size]
        content = content[size:]


def _coded_images(content: memoryview) -> Iterator[list[slice]]:
    """Yield where the data of each image coded as HEVC lie in the file; `content` is that of `meta`."""
    meta = dict(_boxes(content))
    infos = meta[b"iinf"]
    coded = set()
    for _, info in _boxes(infos[8 if infos[0] else 6 :]):
        width = 4 if info[0] > 2 else 2
        if bytes(info[6 + width : 10 + width]) == b"hvc1":
            coded.add(int.from_bytes(info[4 : 4 + width], "big"))
    yield from (parts for number, parts in _places(io.BytesIO(meta[b"iloc"])) if number in coded)


def _places(iloc: io.BytesIO) -> Iterator[tuple[int, list[slice]]]:
    """Yield the number of each item, and where its data lie in the file."""

    def read(size: int) -> int:
        if len(data := iloc.read(size)) < size:
            raise struct.error
        return int.from_bytes(data, "big")

    version, _ = read(1), read(3)
    sizes, more_sizes = read(1), read(1)
    number_size = 4 if version == 2 else 2
    for _ in range(read(number_size)):
        number = read(number_size)
        method = read(2) if version else 0
        _, base = read(2), read(more_sizes >> 4)
        parts = []
        for _ in range(read(2)):
            read(more_sizes & 15 if version else 0)
            start = base + read(sizes >> 4)
            parts.append(slice(start, start + read(sizes & 15)))
        if method == 0:  # in the file itself
            yield number, parts


def _whole_units(data: bytes) -> bool:
    """Return whether data are whole HEVC units, each after its length in 4 bytes."""
    at = 0
    while at + 4 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        if size == 0:
            return False
        at += 4 + size
    return at == len(data)
