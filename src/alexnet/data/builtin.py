"""Built-in datasets: digits, CIFAR-10 and Fashion-MNIST, from a local copy or downloaded.

Nothing that was downloaded is executed or unpacked to disk: archives are checked, then read in memory, and CIFAR-10's pickles
are read by a restricted unpickler.
"""

import gzip
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.download import MB, Source, fetch
from alexnet.data.table import Table
from alexnet.errors import DataError, error_reason, suggest
from alexnet.files import expand_user, user_cache
from alexnet.progress import track

NAMES: tuple[str, ...] = ("digits", "cifar10", "fashion-mnist")
MAX_MEMBER = 64 * MB  # a CIFAR-10 batch takes 31 MB, or 45 MB if Python 3 wrote it for Python 2
CIFAR_FOLDER = "cifar-10-batches-py"
OFFICIAL = "put the official CIFAR-10 (Python version) there"
CIFAR_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
CIFAR_FILES = ["batches.meta", *CIFAR_BATCHES["train"], *CIFAR_BATCHES["test"]]
FASHION_LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
FASHION_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"
FASHION = {
    "train-images": ("train-images-idx3-ubyte", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", 47040016),
    "train-labels": ("train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", 60008),
    "test-images": ("t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", 7840016),
    "test-labels": ("t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", 10008),
}
SOURCES = {
    key: Source(f"{FASHION_URL}/{name}.gz", f"fashion-mnist/{name}.gz", sha256, size, unpacked=True)
    for key, (name, sha256, size) in FASHION.items()
} | {"cifar10": Source(CIFAR_URL, Path(CIFAR_URL).name, CIFAR_SHA256, 170498071, unpacked=False)}


def load(name: str, data_root: Path | None) -> Table:
    """Return a dataset, downloaded unless it is in `data_root` (None: `default_root`); its pixels are N H W 3 uint8."""
    if name not in NAMES:
        raise DataError(f"no built-in dataset {name!r}; {suggest(name, NAMES)}")
    if name == "digits":
        return _digits()
    root = data_root or default_root()
    with failing(root):
        return _cifar10(root) if name == "cifar10" else _fashion_mnist(root)


@contextmanager
def failing(root: Path) -> Iterator[None]:
    """Convert an error of the operating system to one that says how to name another folder than `root`."""
    try:
        yield
    except OSError as error:
        reason = f"cannot use {error.filename or root}: {error_reason(error)}"
        raise DataError(f"{reason}; name another folder with ALEXNET_DATA, or in training with --data-root") from error


def default_root() -> Path:
    """Return the folder of downloads: ALEXNET_DATA, else one in the user's cache."""
    folder = os.environ.get("ALEXNET_DATA")
    return expand_user(folder) if folder else user_cache() / "data"


def _table(
    name: str, labels: tuple[str, ...], pixels: NDArray[np.uint8], targets: NDArray[np.integer], counts: dict[str, int]
) -> Table:
    """Make a table of `pixels` (N H W or N H W 3), ordered by split with `counts` images each; sort the `labels`."""
    if pixels.ndim == 3:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)  # N H W -> N H W 3
    order = sorted(range(len(labels)), key=labels.__getitem__)
    return Table(
        name=name,
        labels=tuple(labels[i] for i in order),
        images=[f"{split or name}/{i:05}" for split, count in counts.items() for i in range(count)],
        targets=np.argsort(order)[targets],  # the inverse of `order` maps old to new positions
        splits=np.repeat(np.array(list(counts), "<U5"), list(counts.values())),
        pixels=np.ascontiguousarray(pixels),
        mirror=name != "digits",
    )


def _digits() -> Table:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # N 8 8, levels 0 to 16
    return _table("digits", tuple(map(str, bunch.target_names)), pixels, bunch.target, {"": len(pixels)})


# CIFAR-10: six batches and the class names, each a pickle, in a folder or in the archive


def _cifar10(root: Path) -> Table:
    folder, files = _cifar_files(root)
    parts, targets = [], []
    counts = dict.fromkeys(CIFAR_BATCHES, 0)
    name = "batches.meta"
    try:
        labels = _cifar_labels(files.pop(name))
        for split, names in CIFAR_BATCHES.items():
            for name in names:
                pixels, numbers = _cifar_batch(files.pop(name))
                parts.append(pixels)
                targets.append(numbers)
                counts[split] += len(pixels)
    except KeyError as error:
        raise DataError(f"{folder / name}: missing; {OFFICIAL}") from error
    except ValueError as error:
        raise DataError(f"{folder / name}: {error}; {OFFICIAL}") from error
    planes = np.concatenate(parts).reshape(-1, 3, 32, 32)
    del parts, pixels  # 184 MB
    return _table("cifar10", labels, planes.transpose(0, 2, 3, 1), np.concatenate(targets), counts)  # N C H W -> N H W C


def _cifar_files(root: Path) -> tuple[Path, dict[str, bytes]]:
    """Return the path of CIFAR-10 and the contents of its files, from the unpacked folder if there is one, else the archive."""
    for folder in (root / CIFAR_FOLDER, root):
        if result := [name for name in CIFAR_FILES if (folder / name).is_file()]:
            return folder, {name: _read_limited((folder / name).open("rb"), folder / name) for name in result}
    path, content = fetch(SOURCES["cifar10"], root)
    expected = {f"{CIFAR_FOLDER}/{name}": name for name in CIFAR_FILES}
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in track(archive, "Unpacking CIFAR-10", 9):
                stream = archive.extractfile(member) if member.name in expected and member.isfile() else None
                if stream is not None:
                    files[expected[member.name]] = _read_limited(stream, path / member.name)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}); remove it and repeat the command to download it") from error
    return path / CIFAR_FOLDER, files


def _read_limited(stream: IO[bytes], path: Path) -> bytes:
    with stream:
        content = stream.read(MAX_MEMBER + 1)
    if len(content) > MAX_MEMBER:
        raise DataError(f"{path}: larger than {MAX_MEMBER // MB} MB; {OFFICIAL}")
    return content


class _Unpickler(pickle._Unpickler):  # in Python: the one in C allocates memory for any index in a file
    """Restricted to numbers, strings, bytes, lists, tuples, dicts and uint8 arrays; calls nothing that a file names."""

    def find_class(self, module: str, name: str, /) -> Any:
        match module, name:
            case "_codecs", "encode":  # how Python 3 writes bytes in a pickle for Python 2
                return lambda text, encoding: text.encode("latin1")
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":  # NumPy 1, of the official files, and 2
                return lambda kind, shape, dtype: np.empty(0, np.uint8)
            case "numpy", "ndarray":
                return None  # an argument of `_reconstruct`
            case "numpy", "dtype":
                return lambda name, align, copy: {"u1": np.dtype("u1"), b"u1": np.dtype("u1")}[name]  # ignores any state
        raise pickle.UnpicklingError(f"refused, since it asks for {module!r} {name!r}")


def _unpickle(content: bytes) -> dict[str, Any]:
    """Return the dict in a pickle, its keys as str; raise ValueError if it is damaged or not a dict."""
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return {_text(key): item for key, item in value.items()}
    except Exception as error:  # a damaged pickle may raise any type, by pickle's documentation
        raise ValueError(f"not readable ({' '.join(f'{type(error).__name__}: {error}'.split())[:200]})") from error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _cifar_labels(content: bytes) -> tuple[str, ...]:
    names = _unpickle(content).get("label_names")
    labels = tuple(map(_text, names)) if isinstance(names, list) else ()
    if len(labels) != 10 or len(set(labels)) != 10:
        raise ValueError("`label_names` is not a list of 10 names")
    return labels


def _cifar_batch(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the pixels, N 3072 (planes of 32 x 32), and the N class numbers of a batch; raise ValueError if it is not one."""
    batch = _unpickle(content)
    pixels, labels = batch.get("data"), batch.get("labels", ())
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise ValueError("`data` is not a uint8 array of N x 3072")
    numbered = isinstance(labels, list) and all(type(label) is int and 0 <= label < 10 for label in labels)
    if not numbered or len(labels) != len(pixels):
        raise ValueError(f"`labels` is not a list of {len(pixels)} numbers from 0 to 9")
    return pixels, np.array(labels, np.int64)


# Fashion-MNIST: four IDX files


def _fashion_mnist(root: Path) -> Table:
    images = [_idx(SOURCES[f"{split}-images"], root, (28, 28)) for split in ("train", "test")]
    labels = [_idx(SOURCES[f"{split}-labels"], root, ()) for split in ("train", "test")]
    counts = {"train": len(labels[0]), "test": len(labels[1])}
    return _table("fashion-mnist", FASHION_LABELS, np.concatenate(images), np.concatenate(labels), counts)


def _idx(source: Source, root: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the N x `shape` uint8 array of an IDX file, whose checksum `fetch` verifies."""
    _, content = fetch(source, root)
    header = 4 + 4 * (1 + len(shape))  # type and number of axes; the size of each
    return np.frombuffer(content, np.uint8, offset=header).reshape(-1, *shape)
