"""Keras' weight files, opened without trusting them: no link is followed, no other file read, nothing executed.

Three layouts hold the same arrays: `.weights.h5` of Keras 3 (groups `layers/<name>/vars/<number>`), the older `.h5` (attributes
`layer_names` and `weight_names`, at the root or under `model_weights`), and `.keras`, a zip with a `.weights.h5` in it.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.convert.hdf5_names import Content, Names
from alexnet.errors import WeightsError

if TYPE_CHECKING:
    import h5py

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"  # how the files begin
MEMBER = "model.weights.h5"
RATIO = 16  # Keras does not compress; weights hardly can be, though an optimizer's zeros can
SKIPPED = ("optimizer", "optimizer_weights", "metrics")  # groups of the root that hold no weights
MAX_OBJECTS, MAX_PATH = 50_000, 1000  # groups and arrays, characters; Keras writes some 100 and 100 for an AlexNet
KINDS = {4: "convolution", 2: "dense layer", 1: "batch normalisation"}  # by the axes of a layer's first array


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A layer of a file: its name there and its arrays in Keras' order, not read yet."""

    name: str
    arrays: tuple[h5py.Dataset, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the arrays, as Keras has them."""
        return tuple(array.shape for array in self.arrays)

    @property
    def kind(self) -> str | None:
        """A value of `KINDS`, or None for what an AlexNet does not have."""
        return KINDS.get(len(self.shapes[0]))

    def read(self) -> list[NDArray[np.float32]]:
        """Return the arrays; only as large as their shapes say, so look at those before."""
        return [array.astype(np.float32)[()] for array in self.arrays]


@contextmanager
def open_layers(path: Path) -> Iterator[list[StoredLayer]]:
    """Open a Keras file and give its layers that have weights, in the order of the model.

    That order is the file's own list, or else that of the names, where `conv2d_10` comes after `conv2d_9`.

    Raises:
        WeightsError: h5py is missing; no such file, another kind, damaged, or something in it that Keras does not write.
    """
    try:
        import h5py
    except ImportError as error:
        raise WeightsError("reading Keras files needs h5py: pip install h5py") from error
    try:
        with ExitStack() as stack:
            content = _content(path, stack)
            source = io.BytesIO(content) if isinstance(content, bytes) else path
            yield list(_layers(stack.enter_context(h5py.File(source, "r")), content))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # HDF5, zlib and zipfile raise a dozen kinds on damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path} cannot be read as a Keras file: {reason}") from error


def _content(path: Path, stack: ExitStack) -> Content:
    """Return the bytes of the HDF5 file: those of the file itself, mapped until `stack` ends, or those inside a zip."""
    if not path.is_file():
        way_out = "is a folder; save the model as one file (model.save('model.keras'))" if path.is_dir() else "no such file"
        raise WeightsError(way_out)
    file = stack.enter_context(path.open("rb"))
    start = file.read(len(HDF5))
    if start.startswith(ZIP):
        return _member(path)
    if start != HDF5:
        raise WeightsError("not a Keras file: neither HDF5 (.weights.h5, .h5) nor a zip with it inside (.keras)")
    return stack.enter_context(mmap(file.fileno(), 0, access=ACCESS_READ))


def _member(path: Path) -> bytes:
    """Return the weights inside a `.keras` file; nothing is written to disk."""
    with zipfile.ZipFile(path) as archive:
        if MEMBER not in archive.namelist():
            raise WeightsError(f"not a .keras file: this zip has no {MEMBER}")
        member = archive.getinfo(MEMBER)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise WeightsError(f"{MEMBER} is compressed in a way that Keras does not use; save the model anew")
        packed = min(member.compress_size, path.stat().st_size)
        if member.file_size > RATIO * packed:
            raise WeightsError(f"{MEMBER} unpacks from {packed:,} to {member.file_size:,} bytes: weights do not shrink so far")
        return archive.read(member)


def _layers(file: h5py.File, content: Content) -> Iterator[StoredLayer]:
    """Yield the layers of an open file, whose bytes are `content`."""
    objects = {"": file}
    for path, item in _walk(file, ""):
        objects[path] = item
        if len(objects) > MAX_OBJECTS:
            raise WeightsError(f"more than {MAX_OBJECTS:,} groups and arrays: no file of an AlexNet has as many")
    root = "/model_weights" if "/model_weights" in objects else ""
    older = "layer_names" in objects[root].attrs
    found = _listed(objects, root, Names(content)) if older else _numbered(objects)
    layers: dict[tuple[str, str], list[str]] = {}
    for layer, array in found:
        layers.setdefault(layer, []).append(array)
    if not layers:
        raise WeightsError("no weights in it; write it with Keras' model.save or model.save_weights")
    for (_, name), paths in layers.items():
        arrays = {path: array for path in paths if (array := _array(objects, path)).ndim}  # without counters
        if any(array.dtype.kind not in "iu" for array in arrays.values()):  # else the seed of a random layer
            yield StoredLayer(name, tuple(_plain(array, path, len(content)) for path, array in arrays.items()))


def _walk(group: h5py.ProcessGroup, above: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the object of everything under `group`, but for an optimizer; refuse links."""
    import h5py

    for name in group:
        path = f"{above}/{name}".replace("\\", "/")  # Keras 2 on Windows
        if path.split("/")[1] in SKIPPED:
            continue
        if isinstance(name, bytes) or "/" in name or name in ("", ".", "..") or len(path) > MAX_PATH:  # bytes: no UTF-8
            raise WeightsError(f"{path[:200]!r} is a name that Keras does not write; is the file damaged?")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise WeightsError(f"{path!r} is a link; Keras writes none, and links are not followed")
        item = group[name]
        yield path, item
        if isinstance(item, h5py.ProcessGroup):
            yield from _walk(item, path)


def _numbered(objects: dict[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield a layer and the path of an array of it, for each array of Keras 3: `/layers/conv2d_1/vars/0`."""
    for path in sorted(objects, key=_natural):
        group, _, number = path.removeprefix("/").rpartition("/")
        if group.rpartition("/")[2] == "vars" and number.isdecimal():
            yield ("", group.removesuffix("/vars")), path


def _listed(objects: dict[str, Any], root: str, lists: Names) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield a layer and the path of an array of it, for each array that the lists of an older file name.

    A model inside the model is one entry of the list; its layers are told apart by the names of their weights.
    """
    for entry in _names(objects[root], "layer_names", lists):
        group = objects.get(f"{root}/{entry}")
        if group is None:
            raise WeightsError(f"its list of layers names {entry[:200]!r}, which it has not")
        for weight in _names(group, "weight_names", lists):
            yield (entry, weight.rpartition("/")[0] or entry), f"{root}/{entry}/{weight}"


def _names(group: Any, attribute: str, lists: Names) -> list[str]:
    """Return a list of names that Keras kept as an attribute: fixed or variable strings, or an empty float array."""
    import h5py

    held = group.attrs.get_id(attribute)
    if held.shape == (0,):
        return []
    text = h5py.check_string_dtype(held.dtype)
    if len(held.shape) != 1 or held.shape[0] > MAX_OBJECTS or text is None:
        raise WeightsError(f"{attribute!r} is not a list of names")
    return lists.read(h5py.h5o.get_info(group.id).addr, attribute, held.shape[0], text.length)


def _array(objects: dict[str, Any], path: str) -> h5py.Dataset:
    import h5py

    if not isinstance(found := objects.get(path), h5py.Dataset):
        raise WeightsError(f"it has no array {path[:200]!r}")
    return found


def _plain(array: h5py.Dataset, path: str, size: int) -> h5py.Dataset:
    """Return `array` if its values are floats that lie in the file as Keras writes them: in one piece, all there."""
    import h5py

    if array.dtype not in (np.float16, np.float32, np.float64):
        kind = str(array.dtype)[:100]
        raise WeightsError(f"{path!r} holds {kind}, not float16, float32 or float64: save the model in float32")
    how, start = array.id.get_create_plist(), array.id.get_offset()
    if how.get_layout() != h5py.h5d.CONTIGUOUS or how.get_external_count():
        raise WeightsError(f"{path!r} is not in one piece in this file, as Keras writes it; save the model anew")
    if start is None or start + math.prod(array.shape) * array.dtype.itemsize > size:
        raise WeightsError(f"{path!r} of {' x '.join(map(str, array.shape))} values is not all in the file; it is damaged")
    return array


def _natural(path: str) -> list[list[str | int]]:
    """Sort key: numbers in names count as numbers, and a name comes before those that go on from it."""
    return [[int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)] for name in path.split("/")]
