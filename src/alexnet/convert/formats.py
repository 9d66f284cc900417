"""Trained networks in files of other programs: find the format from the content, and read it."""

import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from alexnet.convert.graph import read_graph
from alexnet.convert.torchvision import IMAGES, is_safetensors, read_torchvision
from alexnet.errors import WeightsError, error_reason

Form = Literal["torchvision", "keras", "caffe", "onnx"]
MAX_FILE = (1 << 31) - 1  # bytes, the limit of protocol buffers; a checkpoint with an optimizer's state takes 0.7 GB
PICKLES, HDF5, ZIP = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), b"\x89HDF", b"PK"
# First bytes of protocol buffers: ONNX begins with the version of its format, Caffe with a name, an input or a layer.
ONNX, CAFFE = b"\x08", (b"\x0a", b"\x12", b"\x1a", b"\xa2\x06")


class Trained(NamedTuple):
    """A trained network: the variant, its tensors under our names, the head's too, and the keys of `[images]` to use."""

    variant: str
    tensors: dict[str, Tensor]
    images: dict[str, Any]


def find_format(path: Path) -> Form:
    """Return the format of a file, found from its content.

    Raises:
        WeightsError: the file cannot be read, or is of none of the formats.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
        size = path.stat().st_size
        if head.startswith(ZIP) and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                keras = any(name.endswith(".h5") for name in archive.namelist())
        else:
            keras = head.startswith(HDF5)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise WeightsError(f"cannot read {path}: {error_reason(error)}") from error
    if size > MAX_FILE:
        raise WeightsError(f"{path} is larger than 2 GB: no AlexNet is that large")
    if keras:
        return "keras"
    if head.startswith((ZIP, *PICKLES)) or is_safetensors(head):
        return "torchvision"
    if head.startswith((ONNX, *CAFFE)):
        return "onnx" if head.startswith(ONNX) else "caffe"
    known = "a .pth or .safetensors in torchvision's layout, a Keras file, a .caffemodel or an ONNX file"
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a pointer of Git LFS: run git lfs pull")
    raise WeightsError(f"{path} is damaged, or not a file of trained weights: it should be {known}")


def read_trained(path: Path, variant: str | None = None) -> Trained:
    """Read a file in torchvision's layout, of Caffe or of ONNX; `variant` decides where the file does not tell.

    Raises:
        WeightsError: the file cannot be read, or its network is none of the variants, or not this one.
    """
    form = find_format(path)
    if form == "keras":
        raise WeightsError(f"{path} is a Keras file: make it a run first, alexnet import {path} --variant V --out RUN")
    if form != "torchvision":
        return Trained(*read_graph(form, path, variant))
    if variant not in (None, "owt"):
        raise WeightsError(
            f"{path} is in torchvision's layout, and needs the variant 'owt', not {variant!r}: add --variant owt"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error_reason(error)}") from error
    return Trained("owt", read_torchvision(content, path), IMAGES)
