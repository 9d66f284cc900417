"""Extract features: images go through the network batch by batch, and what is done is on disk, so a stop loses little."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode_pool import Source
from alexnet.errors import DataError, Interrupted, RunError, counted, error_reason
from alexnet.extract.formats import FORMATS, Matrices
from alexnet.files import hold_lock, read_json, write_json, writing
from alexnet.inference.features import Features, stream_features
from alexnet.inference.predict import BATCH
from alexnet.network.alexnet import AlexNet
from alexnet.progress import track
from alexnet.run import ModelConfig

OURS = ("*.f32", "state.json", "lock", "state.json.*.part")  # in the folder of a store
Maps = Literal["keep", "mean", "max", "flat"]
REDUCE: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "keep": lambda maps: maps,
    "mean": lambda maps: maps.mean((2, 3)),
    "max": lambda maps: maps.max((2, 3)),
    "flat": lambda maps: maps.reshape(len(maps), int(np.prod(maps.shape[1:]))),
}


def extract(
    network: AlexNet,
    config: ModelConfig,
    sources: Sequence[Source],
    layers: Sequence[str],
    out: Path,
    maps: Maps = "keep",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the activations of layers for all images to a file; the arguments are those of `Run.extract`."""
    if out.suffix not in FORMATS:
        raise DataError(f"{out} has the ending {out.suffix!r}: name a file that ends in {', '.join(FORMATS)}")
    form = FORMATS[out.suffix]
    files = [source for source in sources if isinstance(source, Path)]
    if len(files) < len(sources) or not files:
        raise DataError("features are extracted from image files: name some, or use stream_features for arrays")
    if not layers:
        raise DataError("no layers: name one or more, as in alexnet model summary")
    form.refuse(out, overwrite)
    for layer in layers:
        network.layer_name(layer)
    store = _Store(out.with_name(f"{out.name}.partial"), _digest(config, files, layers, maps))
    with hold_lock(store.folder / "lock", f"another process is writing {out}: wait for it, or name another file"):
        store.open()
        try:
            for batch in _batches(network, config, files, layers, store):
                store.add(batch, REDUCE[maps], min(BATCH, len(files) - store.done))
        except KeyboardInterrupt as error:
            many = f"{store.done:,} of {counted(len(files), 'image')} done"
            raise Interrupted(f"stopped, {many}: the same command goes on from there", 130) from error
        if not store.rows:
            store.remove()
            raise DataError(f"none of {counted(len(files), 'image')} can be read, such as {store.errors[0]['image']}")
        unread = {error["image"] for error in store.errors}
        images, matrices = [str(path) for path in files if str(path) not in unread], store.matrices()
        info = {"made_by": "alexnet", "variant": config.variant, "weights_sha256": config.sha256, "maps": maps}
        form.put(out, lambda part: form.write(part, images, matrices, info), overwrite)
        shapes = {layer: list(matrix.shape) for layer, matrix in matrices.items()}
        result = {"file": str(out), "images": len(images), "layers": shapes, "bytes": _size(out)}
    store.remove()
    return {**result, "errors": store.errors}


def _size(path: Path) -> int:
    """Return the size of a file, or of the files in a folder, in bytes."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _batches(
    network: AlexNet, config: ModelConfig, files: Sequence[Path], layers: Sequence[str], store: "_Store"
) -> Iterator[Features]:
    """Yield the features of the files that are not in the store yet, in the batches of an undisturbed extraction."""
    left = track(files[store.done :], "Extracting features", len(files) - store.done)
    yield from stream_features(network, config, left, layers)


def _digest(config: ModelConfig, files: Sequence[Path], layers: Sequence[str], maps: str) -> str:
    """Return a hash of everything that determines the features, and of the images' sizes and times of change."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else str(path) for path in files]
    return hashlib.sha256(json.dumps([config.digest(), stats, list(layers), maps]).encode()).hexdigest()


class _Store:
    """A folder with the features so far: raw float32 rows in a file for each layer, and `state.json`.

    The state is written after the rows it counts, so rows behind it are of a batch that was not finished.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self.digest = folder, digest
        self.done = 0  # number of files, readable or not
        self.errors: list[dict[str, str]] = []  # of those that could not be read
        self.shapes: dict[str, list[int]] = {}  # of a row
        if folder.is_symlink():
            raise RunError(f"{folder} is a link: move it away, or name another file")
        with writing(folder):
            folder.mkdir(exist_ok=True)
            others = [path for path in folder.iterdir() if not any(map(path.match, OURS))]
        if others:
            raise RunError(f"{folder} holds {others[0].name}, which is not ours: move it away, or name another file")

    @property
    def rows(self) -> int:
        """Number of images so far."""
        return self.done - len(self.errors)

    def open(self) -> None:
        """Read the state of an extraction that stopped, unless it was of something else."""
        path = self.folder / "state.json"
        if path.exists() and (state := read_json(path)).get("digest") == self.digest:
            self.done, self.errors, self.shapes = (state[key] for key in ("done", "errors", "shapes"))
        for layer in self.shapes:
            self._cut(layer)

    def add(self, batch: Features, reduce: Callable[[NDArray[np.float32]], NDArray[np.float32]], count: int) -> None:
        """Append the features of a batch of `count` files."""
        with writing(self.folder):
            for layer, rows in batch.layers.items():
                rows = reduce(rows) if rows.ndim == 4 else rows
                self.shapes[layer] = list(rows.shape[1:])
                with self._path(layer).open("ab" if self.done else "wb") as file:
                    file.write(np.ascontiguousarray(rows).data)
                    file.flush()
                    os.fsync(file.fileno())
        self.done += count
        self.errors += batch.errors
        state = {"digest": self.digest, "done": self.done, "errors": self.errors, "shapes": self.shapes}
        write_json(self.folder / "state.json", state)

    def matrices(self) -> Matrices:
        """Return the features by layer, in files."""
        return {
            layer: np.memmap(self._path(layer), np.float32, "r", shape=(self.rows, *shape))
            for layer, shape in self.shapes.items()
        }

    def remove(self) -> None:
        """Remove what the store wrote, and its folder if nothing else is in it."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if any(map(path.match, OURS)):
                    path.unlink()
            self.folder.rmdir()

    def _path(self, layer: str) -> Path:
        return self.folder / f"{layer}.f32"

    def _cut(self, layer: str) -> None:
        """Remove the rows of a batch that was not finished."""
        size = 4 * self.rows * int(np.prod(self.shapes[layer]))
        try:
            with self._path(layer).open("rb+") as file:
                if file.seek(0, 2) < size:
                    raise RunError(f"{file.name} is cut off: remove {self.folder}, and repeat the command")
                file.truncate(size)
        except OSError as error:
            raise RunError(f"{self._path(layer)} cannot be read: {error_reason(error)}; remove {self.folder}") from error
