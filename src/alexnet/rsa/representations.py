"""Representations from files: features as `alexnet features` writes them, and dissimilarity matrices from elsewhere."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.errors import AlexNetError, DataError, counted, error_reason, truncate
from alexnet.rsa.measures import Floats, Kind, dissimilarities, gram, pairs

SUFFIXES = (".npz", ".h5", ".hdf5", ".mat", ".zarr", ".npy", ".csv")


@dataclass(frozen=True, eq=False)
class Representation:
    """What a layer, or anything else, makes of N images.

    Attributes:
        path: the file.
        layer: the layer; "" for a matrix from elsewhere.
        name: the file's name without its ending, and the layer.
        images: names of the images; None if the file has none.
        rdm: dissimilarities, N x N.
        gram: products of the centred features, N x N; None for a matrix from elsewhere.
    """

    path: Path
    layer: str
    name: str
    images: tuple[str, ...] | None
    rdm: Floats
    gram: Floats | None

    def ordered(self, images: Sequence[str]) -> "Representation":
        """Return the same with the images in this order."""
        path = self.path
        if self.images is None and len(self.rdm) == len(images):
            return self
        if self.images is None:
            raise DataError(f"{path} is of {counted(len(self.rdm), 'image')}, but the first file of {len(images):,}")
        position = {image: i for i, image in enumerate(self.images)}
        missing = [image for image in images if image not in position]
        if missing or len(images) != len(position):
            example = missing[0] if missing else next(image for image in position if image not in set(images))
            raise DataError(f"{path} is not of the same images as the first file: {truncate(example)} is in one of them alone")
        rows = np.array([position[image] for image in images])
        square = np.ix_(rows, rows)
        products = None if self.gram is None else self.gram[square]
        return replace(self, images=tuple(images), rdm=self.rdm[square], gram=products)


def read_representations(paths: Sequence[Path], kind: Kind) -> list[Representation]:
    """Read all representations in files, with the images in the order of the first file that names them.

    Raises:
        DataError: a file cannot be read, or is not of the same images.
    """
    found = [representation for path in paths for representation in _read(path, kind)]
    if not found:
        raise DataError("no files: name features from alexnet features, or dissimilarity matrices")
    images = next((one.images for one in found if one.images is not None), tuple(map(str, range(len(found[0].rdm)))))
    if len(images) < 4:
        raise DataError(f"{paths[0]} is of {counted(len(images), 'image')}: four or more can be compared")
    if len({one.path for one in found}) == 1 and len(found) > 1:
        found = [replace(one, name=one.layer or one.name) for one in found]
    for one in found:
        if one.images is not None and (twice := [name for name, count in Counter(one.images).items() if count > 1]):
            raise DataError(f"{one.path} has the image {truncate(twice[0])} twice: name each once")
    ordered = [one.ordered(images) for one in found]
    for one in ordered:
        if np.ptp(pairs(one.rdm)) == 0:
            raise DataError(
                f"{one.path} has the same dissimilarity for all pairs of images, so nothing can be compared with it"
            )
    return ordered


def _read(path: Path, kind: Kind) -> Iterator[Representation]:
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} has the ending {path.suffix!r}: name a file that ends in {', '.join(SUFFIXES)}")
    try:
        if not path.exists():
            raise FileNotFoundError
        if path.suffix.lower() in (".csv", ".npy"):
            images, matrix = _read_csv(path) if path.suffix.lower() == ".csv" else (None, np.load(path, allow_pickle=False))
            yield Representation(path, "", path.stem, images, _checked(path, matrix), None)
            return
        arrays = _read_arrays(path)
    except AlexNetError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} cannot be read: no such file") from error
    except Exception as error:  # the readers raise many types for a damaged file, and some advise to trust it
        reason = error_reason(error) if isinstance(error, OSError) else f"it is damaged, or not what {path.suffix} says"
        raise DataError(f"{path} cannot be read: {reason}") from error
    if "images" not in arrays:
        raise DataError(f"{path} has no names of images, so alexnet features did not write it")
    images = tuple(name.encode("utf-8", "backslashreplace").decode() for name in map(str, np.ravel(arrays.pop("images"))))
    for layer, array in arrays.items():
        if np.ndim(array) < 2 or len(array) != len(images) or array.dtype.kind != "f":
            continue  # what is said about the run
        features = np.asarray(array, np.float64).reshape(len(images), -1)
        if not np.isfinite(features).all():
            raise DataError(f"{path}, {layer}: some features are missing or infinite")
        try:
            rdm = dissimilarities(features, kind)
        except ValueError as error:
            raise DataError(f"{path}, {layer}: {error}; use euclidean") from error
        yield Representation(path, layer, f"{path.stem} {layer}", images, rdm, gram(features))


def _read_arrays(path: Path) -> dict[str, Any]:
    match path.suffix.lower():
        case ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        case ".mat":
            from scipy.io import loadmat

            return {
                name: np.array([str(cell[0]) for cell in value.ravel()]) if value.dtype == object else value
                for name, value in loadmat(path).items()
                if isinstance(value, np.ndarray)
            }
        case ".zarr":
            try:
                import zarr
            except ImportError as error:
                raise AlexNetError(f"reading {path} needs zarr: pip install 'zarr>=3.1'") from error
            group: Any = zarr.open_group(path, mode="r")
            return {name: np.asarray(group[name][:]) for name in sorted(group.array_keys())}  # in any order
    try:
        import h5py
    except ImportError as error:
        raise AlexNetError(f"reading {path} needs h5py: pip install h5py") from error
    with h5py.File(path) as file:
        return {name: values.asstr()[()] if values.dtype == object else values[()] for name, values in file.items()}


def _read_csv(path: Path) -> tuple[tuple[str, ...] | None, Floats]:
    """Read a square of numbers; names may be in the first row and column, in the same order, as pandas writes them."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file, strict=True) if row]
    names: tuple[str, ...] | None = None
    if rows and not _is_number(rows[0][-1]):
        names, rows = tuple(rows[0][1:]), rows[1:]
        if tuple(row[0] for row in rows) != names:
            raise DataError(f"{path} names other images in its first column than in its first row, or in another order")
        rows = [row[1:] for row in rows]
    if any(len(row) != len(rows) for row in rows):
        raise DataError(f"{path} is not a square of numbers, separated by commas")
    if odd := [cell for row in rows for cell in row if not _is_number(cell)]:
        raise DataError(f"{path} has {truncate(odd[0])!r} where a number is expected, with a point for decimals")
    return names, np.array([[float(cell) for cell in row] for row in rows])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _checked(path: Path, matrix: Any) -> Floats:
    """Return a dissimilarity matrix, or raise a DataError that says why it is none."""
    if matrix.dtype.kind not in "iuf":
        raise DataError(f"{path} holds {matrix.dtype} values, but dissimilarities are real numbers")
    matrix = np.asarray(matrix, np.float64)
    result: Floats = matrix
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        shape = " x ".join(map(str, matrix.shape)) or "a single number"
        raise DataError(f"{path} is {shape}, but a dissimilarity matrix is square")
    if not np.isfinite(matrix).all():
        raise DataError(f"{path} has numbers that are missing or infinite")
    if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9):
        raise DataError(f"{path} is not symmetric: average both halves first")
    if len(matrix) and np.abs(np.diag(matrix)).max() > 1e-6 * np.abs(matrix).max():
        raise DataError(f"{path} is not 0 on its diagonal: for similarities, give 1 minus them")
    return result
