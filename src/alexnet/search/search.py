"""Nearest images: index the images in folders, and find the most similar ones.

As in the 2012 paper (section 6.1, figure 4), an image's code is the activation of the last hidden layer, 4,096 numbers, without
dropout; the smaller the Euclidean distance of two codes, the more similar the images.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode_pool import Source
from alexnet.data.scan import visible_files
from alexnet.errors import AlexNetError, DataError, ImageError, RunError, counted, error_reason
from alexnet.files import expand_user, hold_lock, read_json, remove_leftovers
from alexnet.inference.features import batch_activations, stream_features
from alexnet.inference.predict import source_name
from alexnet.network.alexnet import AlexNet
from alexnet.progress import say, track
from alexnet.run import ModelConfig
from alexnet.search import hashing
from alexnet.search.index import CATALOGUE, Entry, Index, open_index

BITS = 128
BATCHES = 64  # number of images added at once, which survive an interruption: 134 MB of codes
CHUNK = 2**26  # bytes of codes that a thread searches at a time
LOCK = "search.lock"
VERSION_1 = ("images-*.json", "exact-*.faiss", "binary-*.faiss", "coder-*.safetensors")  # of an index of that format

if hasattr(os, "register_at_fork"):  # faiss has threads of its own; see network/device.py
    os.register_at_fork(after_in_child=lambda: "faiss" in sys.modules and sys.modules["faiss"].omp_set_num_threads(1))


def add_images(path: Path, network: AlexNet, config: ModelConfig, folder: Path, bits: int | None = None) -> dict[str, Any]:
    """Update the index at `path` with the images in `folder`; it may contain images of other folders too.

    New and changed images are coded, and missing ones removed. An interrupted call is continued by the next one. The result is
    that of `Run.index`.
    """
    faiss()
    if bits is not None and (bits < 8 or bits % 8):
        raise AlexNetError(f"short codes of {bits} bits cannot be stored: use a multiple of 8, such as {BITS}")
    folder = Path(os.path.abspath(expand_user(folder)))
    if not folder.exists():
        raise DataError(f"no images to index: no such folder {folder}")
    current, skipped, added = _entries(folder), list[dict[str, str]](), 0
    with locked_index(path):
        index = open_index(path, config.sha256) if (path / CATALOGUE).exists() else None
        if index is not None:
            if bits is not None and index.bits not in (None, bits):
                advice = "leave --bits out or name another --out"
                raise RunError(f"{path} has short codes of {index.bits} bits, not {bits}: {advice}")
            old = [(row, entry) for row, entry in enumerate(index.entries) if entry and current.get(entry.path) != entry]
            index = index.remove({row for row, entry in old if Path(entry.path).is_relative_to(folder)})  # gone or changed
        known = {entry.path for entry in index.entries if entry} if index else set()
        new = [image for image in current if image not in known]
        layer = code_layer(network)
        batches = stream_features(network, config, track(map(Path, new), "Coding images", len(new)), [layer], config.precision)
        while several := list(islice(batches, BATCHES)):
            skipped += [{"image": error["image"], "reason": error["error"]} for batch in several for error in batch.errors]
            images = [current[image] for batch in several for image in batch.images]
            codes = np.concatenate([batch.layers[layer] for batch in several])
            if images:
                index = (index or Index(path, config.sha256, codes.shape[1])).add(images, codes)
            added += len(images)
        if index is None:
            reason = f": {skipped[0]['image']}: {skipped[0]['reason']}" if skipped else ""
            raise DataError(f"no image in {folder} can be read{reason}")
        count = len(index.alive)
        if index.bits is None and count < hashing.MIN_CODES:
            say(f"{counted(count, 'image')}, too few to learn short codes ({hashing.MIN_CODES} needed): exact search only")
        elif index.bits is None:
            evenly = np.linspace(0, count - 1, min(count, hashing.MAX_CODES)).astype(np.int64)
            index = index.add_coder(hashing.learn(index.codes[index.alive[evenly]], bits or BITS))
    return {"index": str(path), "images": count, "added": added, "bits": index.bits, "skipped": skipped}


def search_images(
    path: Path, network: AlexNet, config: ModelConfig, sources: Iterable[Source], top: int = 10, binary: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield a result for each source, in order, as `Run.search` returns them."""
    faiss()
    index, layer = open_index(path, config.sha256), code_layer(network)
    for batch, arrays in batch_activations(network, config, sources, [layer], config.precision):
        codes = iter(arrays[layer])
        for source, image in batch:
            if isinstance(image, ImageError):
                yield {"image": source_name(source), "error": str(image)}
                continue
            own = os.path.abspath(source) if isinstance(source, Path) else ""
            near = nearest(index, next(codes), top, binary, own)
            yield {"image": source_name(source), "neighbours": [{"image": path, "distance": d} for path, d in near]}


def nearest(index: Index, code: NDArray[np.float32], top: int, binary: bool, excluded: str = "") -> list[tuple[str, float]]:
    """Return the paths of the `top` images nearest to a code of D numbers, without `excluded`, and their distances.

    Distances are Euclidean distances between codes or, with `binary`, numbers of differing bits between short codes.
    """
    entries = index.entries
    count = top + len(entries) - len(index.alive) + 1  # rows no longer in use may be the nearest
    if not binary:
        squares, rows = _knn(faiss().knn, code[None], index.codes, count)
        distances = np.sqrt(squares)
    elif index.coder is None:
        advice = f"add images until there are {hashing.MIN_CODES} (alexnet search index continues where it stopped)"
        problem = f"{index.folder} has no short codes of {counted(len(entries), 'image')}"
        raise RunError(f"{problem}: {advice}, or search without --binary")
    else:
        distances, rows = _knn(faiss().knn_hamming, index.coder.encode(code[None]), index.short_codes, count)
    near = [(entries[row], float(distance)) for row, distance in zip(rows, distances, strict=True)]
    return [(entry.path, distance) for entry, distance in near if entry is not None and entry.path != excluded][:top]


def _knn(search: Any, query: NDArray[Any], codes: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return distances and rows of the `count` codes nearest to a query, 1 x D; faiss uses one thread, this several."""
    step = max(1, CHUNK // codes[0].nbytes)
    chunks = [codes[first : first + step] for first in range(0, len(codes), step)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda chunk: search(query, chunk, min(count, len(chunk))), chunks))
    distances = np.concatenate([values[0] for values, _ in results])
    rows = np.concatenate([number * step + rows[0] for number, (_, rows) in enumerate(results)])
    order = np.argsort(distances, kind="stable")[:count]
    return distances[order], rows[order]


def code_layer(network: AlexNet) -> str:
    """Return the name of the last activation, `relu7`."""
    return [name for name in network.layer_names if name.startswith(network.row.activation)][-1]


def _entries(folder: Path) -> dict[str, Entry]:
    """Return the images that are in `folder` now, by path."""
    try:
        # the folder may be empty now: all its images were removed
        images = visible_files(folder) if folder.is_dir() else [folder]
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error_reason(error)}") from error
    entries = {}
    for image in images:
        entries[str(image)] = Entry(str(image), 0, 0)
        with suppress(OSError):  # a broken link: it is skipped with its reason when it is read
            state = image.stat()
            entries[str(image)] = Entry(str(image), state.st_size, state.st_mtime_ns)
    return entries


@contextmanager
def locked_index(folder: Path) -> Iterator[None]:
    """Create the folder of an index if needed, and lock it against other processes; remove an index of version 1."""
    try:
        # An indexing that was killed before it wrote search.json has left its lock.
        if folder.exists() and not {CATALOGUE, LOCK} & (names := {path.name for path in folder.iterdir()}) and names:
            raise RunError(f"{folder} is not empty and is not an index: name another --out")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error_reason(error)}") from error
    with hold_lock(folder / LOCK, f"another process is adding to {folder}: wait until it is done"):
        remove_leftovers(folder, f"{CATALOGUE}.*.part")
        if (folder / CATALOGUE).exists() and read_json(folder / CATALOGUE).get("version") == 1:
            say(f"{folder} was written by an earlier version of alexnet: it is rebuilt")
            for path in chain(*map(folder.glob, VERSION_1), [folder / CATALOGUE]):
                path.unlink()
        yield


def faiss() -> ModuleType:
    """Import faiss, or raise an AlexNetError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise AlexNetError("search needs faiss: pip install faiss-cpu") from error
    return faiss
