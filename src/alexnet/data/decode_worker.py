"""The decoding process that decode_pool.py starts: `python -m alexnet.data.decode_worker`.

For each image, it reads a line of JSON, `{"path", "work", "settings"}`; with "bytes" instead of "path", that number of bytes of
the file follows. It answers with a line, `{"bytes", ...}`, followed by that number of bytes. It ends when its input ends, and
so with the process that started it. "work" is a name in `WORK`, or `module:function` for another kind of file.
"""

import hashlib
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexnet.data import decode, metadata, quality
from alexnet.errors import ImageError

CPU_SECONDS = 5.0  # CPU time per image, so that the limit does not depend on the load of the machine
THUMBNAIL = 16  # pixels per side
MEMORY = 3 << 30  # bytes of address space; more than any image within the limits of decode.py needs
FORMAT_NAMES = {"MPO": "JPEG", "HEIF": "HEIC", "JPEG2000": "JPEG 2000", "DIB": "BMP"}  # MPO: a JPEG with a preview
REDUCED_TO = 256  # minimum pixels of the shorter side when decoding for `facts`
REDUCED_FOR_THUMBNAIL = 128
SMALLEST = 64  # pixels of the shorter side of photos; smaller pictures, such as digits, look alike without being copies


def _pixels(source: decode.Source, **settings: Any) -> tuple[dict[str, Any], bytes]:
    image = decode.stored_pixels(source, **settings)
    return {"shape": image.shape}, image.tobytes()


def _cached(
    source: decode.Source, cache_size: int | str, reduced_decode: bool, **settings: Any
) -> tuple[dict[str, Any], bytes]:
    """Return an image as `_pixels` does, followed by its thumbnail; that of an image with a side below `SMALLEST` is black.

    The thumbnail is made from the same pixels, or if those are few, from more: near-duplicates do not depend on `cache_size`.
    """
    least = cache_size if reduced_decode and isinstance(cache_size, int) else 1 << 30
    image = decode.decode(source, least)
    facts, body = _pixels(np.asarray(image), cache_size=cache_size, reduced_decode=reduced_decode, **settings)
    if min(image.size) < REDUCED_FOR_THUMBNAIL and reduced_decode:
        image = decode.decode(source, REDUCED_FOR_THUMBNAIL)
    return facts, body + (make_thumbnail(image).tobytes() if min(image.size) >= SMALLEST else bytes(3 * THUMBNAIL**2))


def _preview(source: decode.Source, side: int) -> tuple[dict[str, Any], bytes]:
    """Return an image as a JPEG of at most `side` x `side` pixels."""
    image, file = decode.decode(source, side), io.BytesIO()
    image.thumbnail((side, side))
    image.save(file, "JPEG", quality=85)
    return {}, file.getvalue()


def _packed(source: decode.Source, side: int | None, quality: int) -> tuple[dict[str, Any], bytes]:
    """Return an image as a file of at most `side` pixels on its shorter side, and its ending.

    A file that is no larger is returned as it is, if it is an upright JPEG, or else as PNG, without loss. Without `side`, every
    file is returned as it is.
    """
    image = decode.decode(source, side or 1 << 30)
    if isinstance(source, bytes | Path):
        with decode.open_image(source) as header:
            upright, form, smaller = metadata.orientation(header) == 1, header.format or "", min(header.size) <= (side or 0)
        if side is None or (smaller and upright and form == "JPEG"):
            ending = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2", "HEIF": "heic"}.get(form, form.lower())
            return {"ending": ending}, source if isinstance(source, bytes) else source.read_bytes()
    file = io.BytesIO()
    if side is None or min(image.size) <= side:
        image.save(file, "PNG")
        return {"ending": "png"}, file.getvalue()
    scale = side / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0).save(file, "JPEG", quality=quality)
    return {"ending": "jpg"}, file.getvalue()


def _size(source: decode.Source) -> tuple[dict[str, Any], bytes]:
    return {"size": decode.size(source)}, b""


def _facts(source: decode.Source) -> tuple[dict[str, Any], bytes]:
    """Return the facts for the data check, and a thumbnail of `THUMBNAIL` x `THUMBNAIL` x 3 uint8.

    `pixels` is the SHA-256 of size and pixels, `range` the largest minus the smallest level, `quality` the measures of
    quality.py, `size` the width and height upright, and `metadata` a description of invalid metadata. The `format` and the
    `bytes` of the file, and the manufacturer of the `camera`, are None where there are none.
    """
    image, damage = decode.decode_with_damage(source, REDUCED_TO)
    levels: NDArray[np.uint8] = np.asarray(image)
    thumbnail = make_thumbnail(image)
    facts = {
        "pixels": hashlib.sha256(repr(levels.shape).encode() + levels.tobytes()).hexdigest(),
        "range": int(levels.max()) - int(levels.min()),
        "quality": quality.measure(image, thumbnail),
        **_header(source, damage, image.width < image.height),
    }
    return facts, thumbnail.tobytes()


def make_thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Scale an RGB image to `THUMBNAIL` x `THUMBNAIL` x 3."""
    return np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def _header(source: decode.Source, damage: ImageError | None, tall: bool) -> dict[str, Any]:
    """Return the facts from a file's header.

    `damage` is the error if the file was decoded without its metadata; `tall` says that the upright image is taller than wide.
    """
    if isinstance(source, np.ndarray | Image.Image):
        plain = {"mode": "RGB", "frames": 1, "orientation": 1, "metadata": ""}
        return {**plain, "size": decode.size(source), "format": None, "bytes": None, "camera": None}
    file = source if damage is None else decode.strip_damaged_metadata(source, damage) or source
    with warnings.catch_warnings(record=True) as warned, decode.open_image(file) as image:
        warnings.simplefilter("always")
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: previews of one photo
        invalid = metadata.find_invalid_exif(image) or "".join(str(warning.message) for warning in warned[:1])
        invalid = "metadata are damaged, it decodes without them" if damage else invalid
        return {
            **{"mode": image.mode, "frames": frames, "orientation": metadata.orientation(image), "metadata": invalid},
            "size": sorted(image.size, reverse=not tall),
            "format": FORMAT_NAMES.get(image.format or "", image.format),
            "bytes": len(source) if isinstance(source, bytes) else source.stat().st_size,
            "camera": metadata.camera_make(image),
        }


WORK: dict[str, Callable[..., tuple[dict[str, Any], bytes]]] = {
    "pixels": _pixels,
    "cached": _cached,
    "preview": _preview,
    "packed": _packed,
    "size": _size,
    "facts": _facts,
}


def main() -> None:
    """Process requests until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process handles these, and may still send images
        signal.signal(number, signal.SIG_IGN)
    with suppress(ImportError, ValueError, OSError):  # on Windows; if the limit is already lower
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep output of libraries apart from the answers
    answers.write(b"{}\n")
    answers.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        source = Path(request["path"]) if "path" in request else sys.stdin.buffer.read(request["bytes"])
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # the signal kills the process
        try:
            module, _, function = request["work"].partition(":")
            work = getattr(import_module(module), function) if function else WORK[module]
            result, body = work(source, **request["settings"])
        except Exception as error:
            reason = decode.to_image_error(error)
            result, body = {"error": str(reason), "kind": reason.kind}, b""
        answers.write(json.dumps({**result, "bytes": len(body)}).encode() + b"\n")
        answers.write(body)
        answers.flush()


if __name__ == "__main__":
    main()
