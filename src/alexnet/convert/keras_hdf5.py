"""Read the layers of a Keras file in a decoding process; nothing in the file is executed, no link is followed.

HDF5's library may hang, crash or ask for gigabytes on a damaged file, so `layers` runs where `decode_worker.py` limits time
and memory. Three layouts hold the same arrays: `.weights.h5` of Keras 3 (groups `layers/<name>/vars/<number>`), the older `.h5`
(attributes `layer_names` and `weight_names`, at the root or under `model_weights`), and `.keras`, a zip with a `.weights.h5`.
"""

import io
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from alexnet.errors import WeightsError

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"  # how the files begin
MEMBER = "model.weights.h5"
RATIO = 16  # Keras does not compress; weights hardly compress, though an optimizer's zeros do
SKIPPED = ("optimizer", "optimizer_weights", "metrics")  # groups of the root that hold no weights
MAX_OBJECTS, MAX_PATH = 50_000, 1000  # groups and arrays, characters; Keras writes about 100 of each for an AlexNet
MAX_BYTES = 1 << 30  # of all weights in float32

Layers = dict[tuple[str, str], list[str]]  # the paths of each layer's arrays, by model and layer


def layers(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return `{"layers": [[name, [shape, …]], …]}` and the concatenated arrays, float32, or `{"refused": reason}`.

    Layers are in the order of the file's own list, else sorted by name, `conv2d_10` after `conv2d_9`.
    """
    try:
        content = _content(path)
        with h5py.File(path if content is None else io.BytesIO(content), "r") as file:
            stored = list(_arrays(file, path.stat().st_size if content is None else len(content)))
            return {"layers": [[name, [array.shape for array in arrays]] for name, arrays in stored]}, _values(stored)
    except WeightsError as error:
        reason = str(error)
    except MemoryError:
        reason = "too large to read; save the weights alone, without the optimizer: model.save_weights('x.weights.h5')"
    except Exception as error:  # HDF5, zlib and zipfile raise a dozen kinds on damaged files
        reason = f"cannot be read as a Keras file: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return {"refused": reason}, b""


def _values(stored: list[tuple[str, list[h5py.Dataset]]]) -> bytes:
    arrays = [array for _, arrays in stored for array in arrays if array.size]
    size = sum(array.size for array in arrays)
    if 4 * size > MAX_BYTES:
        raise WeightsError(f"its weights take more than {MAX_BYTES >> 30} GB: no AlexNet is that large")
    values, start = np.empty(size, np.float32), 0
    for array in arrays:
        array.read_direct(values[start : start + array.size].reshape(array.shape))
        start += array.size
    return values.tobytes()


def _content(path: Path) -> bytes | None:
    """Return the HDF5 file inside a `.keras` file, or None if the file is HDF5 itself; nothing is written to disk."""
    with path.open("rb") as file:
        start = file.read(len(HDF5))
    if start == HDF5:
        return None
    if not start.startswith(ZIP):
        raise WeightsError("not a Keras file: neither HDF5 (.weights.h5, .h5) nor a zip that contains it (.keras)")
    with zipfile.ZipFile(path) as archive:
        if MEMBER not in archive.namelist():
            raise WeightsError(f"not a .keras file: this zip has no {MEMBER}")
        member = archive.getinfo(MEMBER)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise WeightsError(f"{MEMBER} is compressed in a way that Keras does not use; save the model again")
        size, packed = member.file_size, min(member.compress_size, path.stat().st_size)
        if size > RATIO * packed:
            raise WeightsError(f"{MEMBER} unpacks from {packed:,} to {size:,} bytes: weights do not compress that well")
        return archive.read(member)


def _arrays(file: h5py.File, size: int) -> Iterator[tuple[str, list[h5py.Dataset]]]:
    """Yield the layers of an open file of `size` bytes, each with its arrays."""
    objects: dict[str, Any] = {"": file}
    for path, item in _walk(file, ""):
        objects[path] = item
        if len(objects) > MAX_OBJECTS:
            raise WeightsError(f"more than {MAX_OBJECTS:,} groups and arrays: no AlexNet file has that many")
    root = "/model_weights" if "/model_weights" in objects else ""
    paths = _listed(objects, root) if "layer_names" in objects[root].attrs else _numbered(objects)
    if not paths:
        raise WeightsError("no weights in the file; write it with Keras' model.save or model.save_weights")
    for (_, name), inside in paths.items():
        arrays = {path: array for path in inside if (array := _array(objects, path)).ndim}  # without counters
        if any(array.dtype.kind not in "iu" for array in arrays.values()):  # else the seed of a random layer
            yield name, [_plain(array, path, size) for path, array in arrays.items()]


def _walk(group: h5py.Group, above: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the object of everything under `group`, except optimizer state; refuse links."""
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
        if isinstance(item, h5py.Group):
            yield from _walk(item, path)


def _numbered(objects: dict[str, Any]) -> Layers:
    """Return the layers of a Keras 3 file; their arrays have paths like `/layers/conv2d_1/vars/0`."""
    layers: Layers = {}
    for path in sorted(objects, key=_natural):
        group, _, number = path.removeprefix("/").rpartition("/")
        if group.rpartition("/")[2] == "vars" and number.isdecimal():
            layers.setdefault(("", group.removesuffix("/vars")), []).append(path)
    return layers


def _listed(objects: dict[str, Any], root: str) -> Layers:
    """Return the layers in the lists of an older file.

    A nested model is one entry of the list; its layers are distinguished by the names of their weights.
    """
    layers: Layers = {}
    for entry in _names(objects[root], "layer_names"):
        group = objects.get(f"{root}/{entry}")
        if group is None:
            raise WeightsError(f"its list of layers names {entry[:200]!r}, which does not exist")
        for weight in _names(group, "weight_names"):
            layers.setdefault((entry, weight.rpartition("/")[0] or entry), []).append(f"{root}/{entry}/{weight}")
    return layers


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """Return a list of names stored as an attribute: fixed or variable strings, or an empty float array."""
    stored = group.attrs.get_id(attribute)
    if stored.shape == (0,):
        return []
    if len(stored.shape) != 1 or stored.shape[0] > MAX_OBJECTS or h5py.check_string_dtype(stored.dtype) is None:
        raise WeightsError(f"{attribute!r} is not a list of names")
    return [name.decode() if isinstance(name, bytes) else name for name in group.attrs[attribute]]


def _array(objects: dict[str, Any], path: str) -> h5py.Dataset:
    if not isinstance(item := objects.get(path), h5py.Dataset):
        raise WeightsError(f"it has no array {path[:200]!r}")
    return item


def _plain(array: h5py.Dataset, path: str, size: int) -> h5py.Dataset:
    """Return `array` if it is floats stored as Keras writes them: contiguous and complete."""
    if array.dtype not in (np.float16, np.float32, np.float64):
        kind = str(array.dtype)[:100]
        raise WeightsError(f"{path!r} holds {kind}, not float16, float32 or float64: save the model in float32")
    properties, start = array.id.get_create_plist(), array.id.get_offset()
    if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count():
        raise WeightsError(f"{path!r} is not stored contiguously, as Keras writes it; save the model again")
    if start is None or start + math.prod(array.shape) * array.dtype.itemsize > size:
        raise WeightsError(f"{path!r} of {' x '.join(map(str, array.shape))} values is not complete: the file is damaged")
    return array


def _natural(path: str) -> list[list[str | int]]:
    """Sort key: digits in names compare as numbers."""
    return [[int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)] for name in path.split("/")]
