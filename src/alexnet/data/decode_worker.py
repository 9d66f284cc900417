"""The process that decodes: `python -m alexnet.data.decode_worker`, for workers.py.

It reads a line of JSON for each image, `{"path", "work", "settings"}`, or with "bytes" in place of "path", and then so many
bytes of the file itself. It answers with a line, `{"bytes", ...}`, and then so many bytes. It ends when its input does, so with
the process that started it. "work" is a name of `WORK`, or `module:function` of another kind of file.
"""

from __future__ import annotations

import hashlib
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

from alexnet.data import decode, metadata
from alexnet.errors import ImageError

CPU_SECONDS = 5.0  # for one image: of the processor's time, so that a busy machine changes nothing
THUMBNAIL = 16  # pixels a side
MEMORY = 3 << 30  # bytes of addresses; more than any image within the limits of decode.py takes
LOOKED_AT = 256  # pixels of the shorter side at least, for `facts`


def _pixels(source: decode.Source, **settings: Any) -> tuple[dict[str, Any], bytes]:
    image = decode.stored_pixels(source, **settings)
    return {"shape": image.shape}, image.tobytes()


def _size(source: decode.Source) -> tuple[dict[str, Any], bytes]:
    return {"size": decode.size(source)}, b""


def _facts(source: decode.Source) -> tuple[dict[str, Any], bytes]:
    """Find what the data check compares images by; the bytes are a thumbnail's, `THUMBNAIL` x `THUMBNAIL` x 3 uint8.

    `pixels` is the SHA-256 of size and pixels, `range` the greatest minus the least level, `brightest` the greatest, `metadata`
    what is odd beside the pixels.
    """
    image, damage = decode.noted(source, LOOKED_AT)
    levels: NDArray[np.uint8] = np.asarray(image)
    digest = hashlib.sha256(repr(levels.shape).encode() + levels.tobytes()).hexdigest()
    result = {"pixels": digest, "range": int(levels.max()) - int(levels.min()), "brightest": int(levels.max())}
    thumbnail = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return {**result, **_header(source, damage)}, thumbnail.tobytes()


def _header(source: decode.Source, damage: ImageError | None) -> dict[str, Any]:
    """Find what a file says beside its pixels; `damage` is why it was decoded without its metadata, if it was."""
    if isinstance(source, np.ndarray | Image.Image):
        return {"mode": "RGB", "frames": 1, "orientation": 1, "metadata": ""}
    file = source if damage is None else decode.plain_bytes(source, damage) or source
    with warnings.catch_warnings(record=True) as warned, decode.opened(file) as image:
        warnings.simplefilter("always")
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: previews of one photo
        odd = metadata.oddity(image) or "".join(str(warning.message) for warning in warned[:1])
        odd = "metadata are damaged, it decodes without them" if damage else odd
        return {"mode": image.mode, "frames": frames, "orientation": metadata.orientation(image), "metadata": odd}


WORK: dict[str, Callable[..., tuple[dict[str, Any], bytes]]] = {"pixels": _pixels, "size": _size, "facts": _facts}


def _find_work(name: str) -> Callable[..., tuple[dict[str, Any], bytes]]:
    module, _, function = name.partition(":")
    work: Callable[..., tuple[dict[str, Any], bytes]] = getattr(import_module(module), function) if function else WORK[name]
    return work


def main() -> None:
    """Answer until there is no more input."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the process that trains or serves, which has images to come yet
        signal.signal(number, signal.SIG_IGN)
    with suppress(ImportError, ValueError, OSError):  # Windows; a limit that is lower already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    answers.write(b"{}\n")
    answers.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        source = Path(request["path"]) if "path" in request else sys.stdin.buffer.read(request["bytes"])
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # the system ends the process then
        try:
            result, body = _find_work(request["work"])(source, **request["settings"])
        except Exception as error:
            reason = decode.explained(error)
            result, body = {"error": str(reason), "kind": reason.kind}, b""
        answers.write(json.dumps({**result, "bytes": len(body)}).encode() + b"\n")
        answers.write(body)
        answers.flush()


if __name__ == "__main__":
    main()
