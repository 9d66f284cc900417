"""What is given in Python as images: names, paths, bytes, files, images of Pillow, arrays; one of them, or many."""

from __future__ import annotations

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

TAKEN = "a path, bytes, a binary file, an image of Pillow, or an array, uint8, H x W x 3"


class BinaryFile(Protocol):
    """What can be read as bytes: an open file, `io.BytesIO`; it is read from its start, if it can `seek`."""

    def read(self) -> bytes: ...  # noqa: D102


OneImage = str | os.PathLike[str] | bytes | BinaryFile | Image.Image | NDArray[np.uint8]
ImageInput = (
    OneImage | Iterable[OneImage]
)  # a str may be a pattern such as `photos/*.jpg`, a path is none; an array N H W 3 is N images


def to_sources(images: ImageInput) -> list[Source]:
    """Return what is to be decoded, in order; one of many that is no image is answered with the reason.

    Raises:
        DataError: `images` are neither an image nor several, or a name matches no file.
    """
    if isinstance(images, np.ndarray) and not (images.ndim == 1 and images.dtype.kind in "OSU"):  # not an array of names
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
            raise DataError(f"{decode.described(images)}, but should be uint8, H x W x 3, or N x H x W x 3 for N images")
        return [images] if images.ndim == 3 else list(images)
    if isinstance(images, str | os.PathLike) or _is_content(images) or not _is_several(images):
        return _sources(images)
    if isinstance(images, list | tuple) and images and all(isinstance(item, list | tuple) for item in images):
        raise UnsupportedInput(
            "lists in a list are not an image: np.array(…, dtype=np.uint8) makes an array of levels in lists"
        )
    result: list[Source] = []
    for item in cast("Iterable[Any]", images):
        try:
            result += _sources(item)
        except UnsupportedInput as error:
            result.append(InMemoryImage(type(item).__name__, ImageError(str(error), "not an image")))
    return result


class UnsupportedInput(DataError):
    """Something given as an image that is none."""


def _is_content(item: Any) -> bool:
    return isinstance(item, bytes | bytearray | memoryview | Image.Image) or callable(getattr(item, "read", None))


def _is_several(images: object) -> bool:
    """A dictionary's values would be lost, and a set has no order that answers could keep."""
    return isinstance(images, Iterable) and not isinstance(images, Mapping | Set | torch.Tensor)


def _sources(item: Any) -> list[Source]:
    """Return the sources of one image, or of a name of several.

    Raises:
        WrongForm: it is none of these.
        DataError: a name that matches no file.
    """
    if isinstance(item, str | os.PathLike):
        name = os.fsdecode(item)
        return [*find_images([name if isinstance(item, str) else Path(name)])]  # a path is no pattern
    if isinstance(item, np.ndarray):
        return [item]
    if isinstance(item, bytes | bytearray | memoryview):
        return [InMemoryImage("bytes", bytes(item))]
    if isinstance(item, Image.Image):
        return [InMemoryImage(_name(getattr(item, "filename", None), "image"), _loaded(item))]
    if _is_content(item):
        return [InMemoryImage(_name(getattr(item, "name", None), "file"), _read(item))]
    kind = type(item)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"
    raise UnsupportedInput(f"{name} is not an image: give {TAKEN}, or a list of these")


def _name(name: object, otherwise: str) -> str:
    return name if isinstance(name, str) and name else otherwise


def _loaded(image: Image.Image) -> Image.Image | ImageError:
    """Decode an image that was only opened: here, as several threads would disturb each other if it is given twice."""
    try:
        decode.load(image)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        if getattr(image, "fp", image) is None:  # what they raise then has at times no words
            return ImageError("its file was closed before it was read: load() it first, or give its path")
        return decode.explained(error)
    return image


def _read(file: BinaryFile) -> bytes | ImageError:
    if isinstance(file, io.TextIOBase):
        raise UnsupportedInput("a file that was opened as text: open it with 'rb'")
    try:
        with suppress(AttributeError, io.UnsupportedOperation):
            file.seek(0)  # type: ignore[attr-defined]  # as Pillow does: what was written into a BytesIO has been read to its end
        content: object = file.read()
    except Exception as error:  # closed, for writing alone, or whatever a file of another library raises
        return decode.explained(error)
    if not isinstance(content, bytes):
        raise UnsupportedInput(f"a file whose read() gives {type(content).__name__}, but should give bytes: open it with 'rb'")
    return content
