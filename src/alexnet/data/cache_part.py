"""A part of a cache: decoded images of consecutive rows of a table, in two files.

`.u8` has the pixels, N H W C or one image after the other, and then the thumbnails, N x 768. `.json` has the rest: the SHA-256
of what follows, and on the next line what the fields of `Part` say. A part that is damaged counts as missing, but pixels are
not read before they are needed: each image has its own digest.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode_worker import THUMBNAIL
from alexnet.data.pixels import Pixels
from alexnet.errors import ImageError
from alexnet.files import rename, temporary_name, write_text
from alexnet.recipe import Preprocessing


class Decoded(NamedTuple):
    """An image, H W 3, or why it cannot be read, with its thumbnail and the fingerprint of its file, empty for arrays."""

    row: int
    image: NDArray[np.uint8] | ImageError
    thumbnail: bytes = b""
    fingerprint: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """The `pixels` of the readable `rows`, their `thumbnails`, N x 768, and a reason for each of the `unreadable` rows.

    `digests` tell whether the pixels of an image are intact, and `prints` are the fingerprints of the rows' files.
    """

    index: Path
    pixels: Pixels
    thumbnails: NDArray[np.uint8]
    rows: NDArray[np.int64]
    unreadable: dict[int, str]
    digests: tuple[str, ...]
    prints: tuple[str, ...]


def digest(image: NDArray[np.uint8]) -> str:
    """Return what tells one image from all others: half of the SHA-256 of its pixels, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:32]


def write_part(index: Path, images: Iterable[Decoded]) -> None:
    """Write the files of a part; the one at `index` comes last, so that there is no part without it."""
    index.parent.mkdir(parents=True, exist_ok=True)
    rows, shapes, digests, prints = list[int](), list[tuple[int, ...]](), list[str](), list[str]()
    thumbnails, unreadable = list[bytes](), dict[int, str]()
    part = temporary_name(index.with_suffix(".u8"))
    try:
        with part.open("wb") as file:
            for one in images:
                if isinstance(one.image, ImageError):
                    unreadable[one.row] = str(one.image)
                    continue
                file.write(np.ascontiguousarray(one.image).data)
                rows.append(one.row)
                shapes.append(one.image.shape[:2])
                digests.append(digest(one.image))
                prints.append(one.fingerprint)
                thumbnails.append(one.thumbnail)
            small = b"".join(thumbnails)
            file.write(small)
            file.flush()
            os.fsync(file.fileno())
        rename(part, index.with_suffix(".u8"))
    finally:
        part.unlink(missing_ok=True)
    content = {
        "rows": rows,
        "shapes": shapes,
        "unreadable": [*unreadable.items()],
        "digests": digests,
        "prints": prints,
        "thumbnails": hashlib.sha256(small).hexdigest(),
    }
    text = json.dumps(content)
    write_text(index, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def read_part(index: Path, preprocessing: Preprocessing) -> Part | None:
    """Return the part with this index, whose pixels are not read; None if a file is missing, damaged or of another size."""
    data = index.with_suffix(".u8")
    try:
        checksum, _, text = index.read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            return None
        content = json.loads(text)
        shapes = np.array(content["shapes"], dtype=np.int64).reshape(-1, 2)
        size, prints = 3 * int(shapes.prod(1).sum()), tuple(content["prints"])
        wide = 3 * THUMBNAIL**2 if any(prints) else 0  # arrays have no thumbnails
        if data.stat().st_size != size + len(prints) * wide:
            return None
        # As an array, whose slices are taken three times as fast as those of a memmap.
        memory = np.asarray(np.memmap(data, dtype=np.uint8, mode="r")) if size else np.empty(0, dtype=np.uint8)
        thumbnails = memory[size:].reshape(len(prints), wide)
        if hashlib.sha256(thumbnails.tobytes()).hexdigest() != content["thumbnails"]:
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    rows = np.array(content["rows"], dtype=np.int64)
    unreadable, digests = dict(content["unreadable"]), tuple(content["digests"])
    return Part(index, Pixels(memory[:size], shapes, preprocessing), thumbnails, rows, unreadable, digests, prints)
