"""Write TIFF files byte by byte, with any tags."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTE, TEXT, SHORT, LONG, FRACTION, SIGNED_FRACTION = 1, 2, 3, 4, 5, 10
FORMS = {BYTE: "B", SHORT: "H", LONG: "I", FRACTION: "I", SIGNED_FRACTION: "i"}
Tag = tuple[int, int, Any]  # number, type, values: numbers, or raw bytes


def directory(tags: list[Tag], order: str = "<", after: bytes = b"") -> bytes:
    """Return a TIFF of one directory, the format of EXIF data too; `after` follows the values of its entries."""
    end, more, entries = 8 + 2 + 12 * len(tags) + 4, b"", b""
    for tag, kind, values in sorted(tags, key=lambda tag: tag[0]):
        raw = values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{FORMS[kind]}", *values)
        count = len(raw) if kind in (BYTE, TEXT) else len(values) // (2 if kind in (FRACTION, SIGNED_FRACTION) else 1)
        field = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{order}I", end + len(more))
        more += raw if len(raw) > 4 else b""
        entries += struct.pack(f"{order}HHI", tag, kind, count) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + more + after


def tiff(
    levels: NDArray[Any],
    photometric: int = 1,
    number: int = 1,
    extra: int | None = None,
    bits: int = 0,
    planes: bool = False,
    more: tuple[Tag, ...] = (),
) -> bytes:
    """Return an uncompressed TIFF of levels H W or H W bands, in their byte order.

    `number` is 1 for unsigned, 2 for signed, 3 for floats; `extra` is the type of an extra band. Levels of 12 `bits` are
    already packed, with their width as the tag 256 in `more`.
    """
    order = ">" if levels.dtype.byteorder == ">" else "<"
    bands = levels.shape[2] if levels.ndim == 3 else 1
    data = (np.moveaxis(levels, 2, 0) if planes else levels).tobytes()
    strips = bands if planes else 1
    size = len(data) // strips
    tags: list[Tag] = [
        *[(256, SHORT, [levels.shape[1]]), (257, SHORT, [levels.shape[0]])],
        *[(258, SHORT, [bits or levels.dtype.itemsize * 8] * bands), (259, SHORT, [1]), (262, SHORT, [photometric])],
        *[(277, SHORT, [bands]), (278, SHORT, [levels.shape[0]]), (279, LONG, [size] * strips)],
        *[(284, SHORT, [2 if planes else 1]), (339, SHORT, [number] * bands)],
        *([(338, SHORT, [extra])] if extra is not None else []),
    ]
    tags = [*{tag[0]: tag for tag in [*tags, *more]}.values()]
    start = len(directory([*tags, (273, LONG, [0] * strips)], order))
    return directory([*tags, (273, LONG, [start + size * i for i in range(strips)])], order, data)
