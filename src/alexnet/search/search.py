"""Nearest images: an index of the images of folders, and what is nearest in it to others.

As in the 2012 paper (section 6.1, figure 4): an image's code are the numbers of the last hidden layer, after its activation and
without dropout, 4096 of them; images are alike whose codes are close, in Euclidean distance.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode_pool import Source
from alexnet.data.scan import visible_files
from alexnet.errors import AlexNetError, DataError, ImageError, RunError, error_reason
from alexnet.files import expanded
from alexnet.inference.features import Features, batch_activations, stream_features
from alexnet.inference.predict import source_name
from alexnet.network.alexnet import AlexNet
from alexnet.progress import track
from alexnet.run import ModelConfig
from alexnet.search.index import CATALOGUE, SHARD, Entry, Index, alone, faiss, new_index, open_index

BITS = 128


def add_images(place: Path, network: AlexNet, config: ModelConfig, folder: Path, bits: int | None = None) -> dict[str, Any]:
    """Bring the index in `place` up to date with the images in `folder`; there may be others in it already.

    Images that are new or have changed get their codes, those that are gone no longer count. What is done stays done if it is
    stopped. Returns `{"index", "images", "added", "bits", "skipped"}`: images in all and those coded now, the length of short
    codes or None, and `[{"image", "reason"}]`.

    Raises:
        DataError: no such folder, or no image in it that can be read.
        RunError: the index is damaged, belongs to other weights, has another number of bits, or cannot be written.
        AlexNetError: `bits` is no multiple of 8, or faiss is not installed.
    """
    faiss()
    if bits is not None and (bits < 8 or bits % 8):
        raise AlexNetError(f"short codes of {bits} bits cannot be stored: take a multiple of 8, such as {BITS}")
    folder = Path(os.path.abspath(expanded(folder)))
    if not folder.exists():
        raise DataError(f"no image to index: no such folder {folder}")
    wanted = _entries(folder)
    with alone(place):
        index = open_index(place, config.sha256) if (place / CATALOGUE).exists() else None
        if index is not None:
            _refuse_other_bits(index, bits)
            index = index.without(_gone(index, folder, wanted))
        known = set() if index is None else {entry.path for entry in index.entries if entry is not None}
        new = [path for path in wanted if path not in known]
        layer, skipped, added = code_layer(network), list[dict[str, str]](), 0
        shown = track(map(Path, new), "Coding images", len(new))
        found = stream_features(network, config, shown, [layer], config.precision)
        for images, codes in _shards(found, layer, skipped):
            if index is None:
                index = new_index(place, config.sha256, layer, codes.shape[1])
            index = index.plus([wanted[image] for image in images], codes)
            added += len(images)
        if index is None:
            reason = f": {skipped[0]['image']}: {skipped[0]['reason']}" if skipped else ""
            raise DataError(f"no image in {folder} can be read{reason}")
        index = index.binarized(bits or BITS)
    kept = None if index.coder is None else index.coder.bits
    return {"index": str(place), "images": len(index.alive), "added": added, "bits": kept, "skipped": skipped}


def search_images(
    place: Path, network: AlexNet, config: ModelConfig, sources: Iterable[Source], top: int = 10, binary: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield an answer for each source in order: `{"image", "neighbours": [{"image", "distance"}]}` or `{"image", "error"}`.

    Neighbours are nearest first, distances as `Index.suggest` has them; an image is no neighbour of its own.

    Raises:
        RunError: no index in `place`, or it is damaged, belongs to other weights, or has no short codes for `binary`.
        AlexNetError: faiss is not installed.
    """
    faiss()
    index = open_index(place, config.sha256)
    layer = index.catalogue.layer
    for batch, arrays in batch_activations(network, config, sources, [layer], config.precision):
        codes = iter(arrays[layer])
        for source, image in batch:
            if isinstance(image, ImageError):
                yield {"image": source_name(source), "error": str(image)}
                continue
            own = os.path.abspath(source) if isinstance(source, Path) else ""
            near = index.nearest(next(codes), top, binary, own)
            yield {"image": source_name(source), "neighbours": [{"image": path, "distance": d} for path, d in near]}


def code_layer(network: AlexNet) -> str:
    """Return the name of the last activation, `relu7`."""
    return [name for name in network.layer_names if name.startswith(network.row.activation)][-1]


def _entries(folder: Path) -> dict[str, Entry]:
    """Return the images in `folder` as they are now, by path."""
    try:
        images = visible_files(folder) if folder.is_dir() else [folder]  # of a folder that is empty now, all are gone
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error_reason(error)}") from error
    found = {}
    for image in images:
        try:
            state = image.stat()
            found[str(image)] = Entry(str(image), state.st_size, state.st_mtime_ns)
        except OSError:  # a link to nowhere: it is skipped with its reason when it is read
            found[str(image)] = Entry(str(image), 0, 0)
    return found


def _gone(index: Index, folder: Path, wanted: dict[str, Entry]) -> set[int]:
    """Return the rows whose image was in `folder` and is there no longer as it was."""
    held = {row: entry for row, entry in enumerate(index.entries) if entry and Path(entry.path).is_relative_to(folder)}
    return {row for row, entry in held.items() if wanted.get(entry.path) != entry}


def _refuse_other_bits(index: Index, bits: int | None) -> None:
    kept = None if index.coder is None else index.coder.bits
    if bits is not None and kept is not None and bits != kept:
        raise RunError(
            f"{index.folder} has short codes of {kept} bits, not {bits}: leave --bits out, or name another --out to begin anew"
        )


def _shards(
    found: Iterable[Features], layer: str, skipped: list[dict[str, str]]
) -> Iterator[tuple[Sequence[str], NDArray[np.float32]]]:
    """Yield names and codes of as many images as an index takes at once; those that cannot be read go to `skipped`."""
    names: list[str] = []
    parts: list[NDArray[np.float32]] = []
    for batch in found:
        skipped += [{"image": error["image"], "reason": error["error"]} for error in batch.errors]
        if len(names) + len(batch.images) > SHARD:
            yield names, np.concatenate(parts)
            names, parts = [], []
        names += batch.images
        parts.append(batch.layers[layer])
    if names:
        yield names, np.concatenate(parts)
