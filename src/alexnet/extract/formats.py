"""File formats of features: arrays by layer, a row per image, and the images' names as `images`."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import AlexNetError, counted
from alexnet.extract.zarr_folder import refuse_folder, write_folder, write_zarr
from alexnet.files import ZIP_COMMENT, refuse_overwrite, write_output

Matrices = dict[str, NDArray[np.float32]]
Writer = Callable[[Path, Sequence[str], Matrices, Mapping[str, str]], None]
MATLAB_LIMIT = 2**31  # bytes of a variable in a file of MATLAB 5


def write_npz(path: Path, images: Sequence[str], matrices: Matrices, info: Mapping[str, str]) -> None:
    """Write an archive of NumPy arrays, which `np.load` reads without pickles."""
    arrays = {"images": np.array(images, dtype=np.str_), **{key: np.array(value) for key, value in info.items()}, **matrices}
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        archive.comment = ZIP_COMMENT


def write_hdf5(path: Path, images: Sequence[str], matrices: Matrices, info: Mapping[str, str]) -> None:
    """Write a dataset for each layer and one of names; the run is in the attributes."""
    try:
        import h5py
    except ImportError as error:
        raise AlexNetError("writing .h5 needs h5py: pip install h5py, or name a file that ends in .npz") from error
    with h5py.File(path, "w") as file:
        file.attrs["comment"] = np.bytes_(ZIP_COMMENT)
        file.attrs.update(info)
        for layer, matrix in matrices.items():
            file.create_dataset(layer, data=matrix)
        names = [name.encode("utf-8", "backslashreplace") for name in images]
        file.create_dataset("images", data=names, dtype=h5py.string_dtype())


def write_matlab(path: Path, images: Sequence[str], matrices: Matrices, info: Mapping[str, str]) -> None:
    """Write a matrix for each layer and a cell array of names; dots in the names of layers become `_`."""
    from scipy.io import savemat

    if large := [layer for layer, matrix in matrices.items() if matrix.nbytes >= MATLAB_LIMIT]:
        rows = counted(len(images), "image")
        raise AlexNetError(f"{large[0]} of {rows} takes more than 2 GB, the limit of .mat: write .h5, which MATLAB reads too")
    names = np.array([name.encode("utf-8", "backslashreplace").decode() for name in images], dtype=object)[:, None]
    savemat(path, {"images": names, **info, **{layer.replace(".", "_"): matrix for layer, matrix in matrices.items()}})
    with path.open("rb+") as file:
        file.write(b"MATLAB 5.0 MAT-file, made by alexnet".ljust(116))  # a text of 116 bytes for people


class Format(NamedTuple):
    """How to write a format, and what puts it in its place: a file, or a folder."""

    write: Writer
    refuse: Callable[[Path, bool], None] = refuse_overwrite
    put: Callable[[Path, Callable[[Path], object], bool], None] = write_output


HDF5 = Format(write_hdf5)
FORMATS = {
    ".npz": Format(write_npz),
    ".h5": HDF5,
    ".hdf5": HDF5,
    ".mat": Format(write_matlab),
    ".zarr": Format(write_zarr, refuse_folder, write_folder),
}
