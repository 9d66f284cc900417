"""The codes of a dataset's images, computed once: the inputs of the last layer.

A file in the cache folder, named by a hash of the dataset's path, the weights before the last layer, the preprocessing and the
precision, has a record for each image: the SHA-256 of its decoded pixels, a checksum, and its codes. When images are added or
removed, the file is written anew, and only new images pass through the network.
"""

import hashlib
import shutil
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.data.cache import cache_folder
from alexnet.data.dataset import Dataset
from alexnet.errors import DataError, RunError, error_reason
from alexnet.files import DiskFull, cache_remedy, remove_leftovers, write
from alexnet.inference.forward import layer_outputs
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import resolve_precision
from alexnet.progress import track
from alexnet.recipe import Preprocessing

BATCH = 128  # images at a time


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of a dataset's images, in the order of its table: those of row i are in `records[positions[i]]`.

    `reused` is the number of images whose codes were there.
    """

    records: NDArray[np.void]
    positions: NDArray[np.int64]
    reused: int

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the codes of images, N views units float32; the views are the image and, if asked for, its mirror image."""
        result: NDArray[np.float32] = self.records["codes"][self.positions[rows]]
        return result


def image_codes(
    network: AlexNet, dataset: Dataset, preprocessing: Preprocessing, precision: str, *, mirror: bool = False
) -> Codes:
    """Return the codes of a dataset's images, and if `mirror` of their mirror images; compute those that are not there yet."""
    units, views = network.head.in_features, 2 if mirror else 1
    kind = np.dtype([("image", "V32"), ("checksum", "<u4"), ("codes", "<f4", (views, units))])
    path = _path(network, dataset, preprocessing, precision, views)
    images = [_digest(dataset.pixels.image(row)) for row in range(len(dataset.table))]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        records = _open(path, kind)
        known = _intact(records, set(images))
        new = {image: row for row, image in enumerate(images) if image not in known}
        if new:
            free = shutil.disk_usage(path.parent).free
            if len(images) * kind.itemsize > free:
                raise DiskFull(f"{len(images) * kind.itemsize / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free")
            old = records[sorted(known.values())]
            write(path, lambda part: _compute(part, old, new, network, dataset, preprocessing, precision))
            records = _open(path, kind)
            known = _intact(records, set(images))
    except (OSError, RunError) as error:
        problem = f"cannot keep the codes of images in {path.parent}: {error_reason(error)}"
        raise DataError(f"{problem}; {cache_remedy(error)}") from error
    positions = np.array([known[image] for image in images], dtype=np.int64)
    return Codes(records, positions, len(images) - sum(image in new for image in images))


def _path(network: AlexNet, dataset: Dataset, preprocessing: Preprocessing, precision: str, views: int) -> Path:
    table, digest = dataset.table, hashlib.sha256()
    precision = resolve_precision(network.head.weight.device, precision)
    settings = preprocessing.model_dump_json(exclude={"mean_image", "views"})
    layers = [(type(layer).__name__, vars(layer)) for layer in network.row.layers]
    architecture = f"{replace(network.row, layers=())} {layers}"
    facts = [str(table.root or "memory"), table.name, architecture, settings, precision, str(views)]
    digest.update("\0".join(facts).encode("utf-8", "surrogateescape"))
    if preprocessing.mean_image is not None:
        digest.update(np.ascontiguousarray(preprocessing.mean_image).data)
    for name, tensor in network.features.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return cache_folder() / "codes" / f"{table.name}-{digest.hexdigest()[:20]}.codes"


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def _open(path: Path, kind: np.dtype[np.void]) -> NDArray[np.void]:
    """Map the records of a file, none if there is no file."""
    count = path.stat().st_size // kind.itemsize if path.exists() else 0
    return np.memmap(path, kind, mode="r", shape=(count,)) if count else np.empty(0, kind)


def _intact(records: NDArray[np.void], images: set[bytes]) -> dict[bytes, int]:
    """Return the position of the intact record of each of `images` that has one."""
    return {
        image: position
        for position, image in enumerate(records["image"].tolist())
        if image in images and zlib.crc32(records[position]["codes"].data) == records[position]["checksum"]
    }


def _compute(
    part: Path,
    old: NDArray[np.void],
    new: dict[bytes, int],
    network: AlexNet,
    dataset: Dataset,
    preprocessing: Preprocessing,
    precision: str,
) -> None:
    """Write the records `old`, then those of the `new` images, whose rows are given by their hash."""
    layer = network.layer_names[-2]
    images, rows = list(new), np.array(list(new.values()), dtype=np.int64)
    starts = range(0, len(rows), BATCH)
    with part.open("wb") as file:
        old.tofile(file)
        for start in track(starts, f"Computing codes of {dataset.table.name}", len(starts)):
            pixels = torch.from_numpy(dataset.pixels.take(rows[start : start + BATCH]))
            records = np.empty(len(pixels), old.dtype)
            for view in range(old.dtype["codes"].shape[0]):
                outputs = layer_outputs(network, pixels, preprocessing, layer, precision, mirrored=view == 1)
                records["codes"][:, view] = outputs.float().numpy()
            for record, image in zip(records, images[start : start + BATCH], strict=True):
                record["image"], record["checksum"] = image, zlib.crc32(record["codes"].data)
            records.tofile(file)
