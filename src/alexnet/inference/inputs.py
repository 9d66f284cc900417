"""The types that the Python API accepts as images: paths, patterns, bytes, files, Pillow images, and arrays."""

import io
import os
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from alexnet.data import decode
from alexnet.data.decode_pool import InMemoryImage, Source
from alexnet.errors import DataError, ImageError
from alexnet.inference.predict import find_images

SUPPORTED = "a path, bytes, a binary file, a Pillow image, or an array, uint8, H x W x 3"


class BinaryFile(Protocol):
    """An open binary file or `io.BytesIO`; it is read from its start if it can `seek`."""

    def read(self) -> bytes: ...  # noqa: D102


OneImage = str | os.PathLike[str] | bytes | BinaryFile | Image.Image | NDArray[np.uint8]
# A str may be a pattern such as `photos/*.jpg`, a Path may not; an array N H W 3 is N images.
ImageInput = OneImage | Iterable[OneImage]


def to_sources(images: ImageInput) -> list[Source]:
    """Return the sources to decode, in order; an unsupported item of a collection becomes an `ImageError`."""
    if isinstance(images, np.ndarray) and not (images.ndim == 1 and images.dtype.kind in "OSU"):  # not an array of names
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
            raise DataError(f"{decode.describe_array(images)}, but should be uint8, H x W x 3, or N x H x W x 3 for N images")
        return [images] if images.ndim == 3 else list(images)
    # Not a collection: a dictionary's values would be lost, and a set has no order.
    single = not isinstance(images, Iterable) or isinstance(images, str | os.PathLike | Mapping | Set | torch.Tensor)
    if single or _is_content(images):
        return _sources(images)
    if isinstance(images, list | tuple) and images and all(isinstance(item, list | tuple) for item in images):
        raise UnsupportedInput("nested lists are not an image: convert them with np.array(…, dtype=np.uint8)")
    result: list[Source] = []
    for item in cast("Iterable[Any]", images):
        try:
            result += _sources(item)
        except UnsupportedInput as error:
            result.append(InMemoryImage(type(item).__name__, ImageError(str(error), "not an image")))
    return result


class UnsupportedInput(DataError):
    """An object of a type that is not supported as an image."""


def _is_content(item: Any) -> bool:
    return isinstance(item, bytes | bytearray | memoryview | Image.Image) or callable(getattr(item, "read", None))


def _sources(item: Any) -> list[Source]:
    """Return the sources of one item: several for a folder or a pattern."""
    if isinstance(item, str | os.PathLike):
        name = os.fsdecode(item)
        return [*find_images([name if isinstance(item, str) else Path(name)])]  # a Path is never a pattern
    if isinstance(item, np.ndarray):
        return [item]
    if isinstance(item, bytes | bytearray | memoryview):
        return [InMemoryImage("bytes", bytes(item))]
    if isinstance(item, Image.Image):
        return [InMemoryImage(_name(getattr(item, "filename", None), "image"), _load(item))]
    if _is_content(item):
        return [InMemoryImage(_name(getattr(item, "name", None), "file"), _read(item))]
    kind = type(item)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"
    raise UnsupportedInput(f"{name} is not an image: give {SUPPORTED}, or a list of these")


def _name(name: object, default: str) -> str:
    return name if isinstance(name, str) and name else default


def _load(image: Image.Image) -> Image.Image | ImageError:
    """Decode a lazily opened image in the calling thread, as threads would interfere if the same image is given twice."""
    try:
        decode.load(image)
    except Exception as error:  # Pillow's decoders raise many types
        if getattr(image, "fp", image) is None:  # such an error may have no message
            return ImageError("its file was closed before it was read: load() it first, or give its path")
        return decode.to_image_error(error)
    return image


def _read(file: BinaryFile) -> bytes | ImageError:
    if isinstance(file, io.TextIOBase):
        raise UnsupportedInput("a file opened in text mode: open it with 'rb'")
    try:
        with suppress(AttributeError, io.UnsupportedOperation):
            file.seek(0)  # type: ignore[attr-defined]  # as Pillow does: a BytesIO that was just written is at its end
        content: object = file.read()
    except Exception as error:  # closed, write-only, or an error of another library
        return decode.to_image_error(error)
    if not isinstance(content, bytes):
        raise UnsupportedInput(f"a file whose read() returns {type(content).__name__}, not bytes: open it with 'rb'")
    return content
