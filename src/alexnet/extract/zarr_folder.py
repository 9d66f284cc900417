"""Features as a Zarr store: a folder with a chunked array for each layer, written as a whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import AlexNetError, RunError
from alexnet.files import MADE_BY, read_json, rename, writing

CHUNK = 2**24  # bytes, before compression


def write_zarr(path: Path, images: Sequence[str], matrices: Mapping[str, NDArray[np.float32]], info: Mapping[str, str]) -> None:
    """Write an array for each layer and one of names, in Zarr's format 3; the run is in the attributes."""
    try:
        import zarr
    except ImportError as error:
        raise AlexNetError("writing .zarr needs zarr: pip install 'zarr>=3.1', or name a file that ends in .npz") from error
    group = zarr.open_group(path, mode="w-", zarr_format=3)
    group.attrs.update({**info, "arrays": ["images", *matrices]})
    for layer, matrix in matrices.items():
        rows = max(1, min(len(matrix), CHUNK // max(1, matrix[:1].nbytes)))
        array = group.create_array(layer, shape=matrix.shape, dtype="float32", chunks=(rows, *matrix.shape[1:]))
        for start in range(0, len(matrix), rows):
            array[start : start + rows] = matrix[start : start + rows]
    names = [name.encode("utf-8", "backslashreplace").decode() for name in images]
    group.create_array("images", shape=(len(names),), dtype=str, chunks=(len(names),))[:] = np.array(names, dtype=object)


def refuse_folder(path: Path, overwrite: bool = False) -> None:
    """Raise RunError unless a folder may be written to `path`; `overwrite` does not extend to folders that are not ours."""
    if os.path.lexists(path) and not _is_ours(path):
        allowed = "; --overwrite replaces no folder" if overwrite else ""
        raise RunError(f"{path} already exists and was not made by alexnet: give another name{allowed}")


def _is_ours(path: Path) -> bool:
    try:
        facts = read_json(path / "zarr.json")["attributes"]
        known = {"zarr.json", *facts["arrays"]}  # whoever added an array would lose it
        return not path.is_symlink() and facts["made_by"] == MADE_BY and all(entry.name in known for entry in path.iterdir())
    except (OSError, RunError, LookupError, TypeError):
        return False


def write_folder(path: Path, writer: Callable[[Path], object], overwrite: bool = False) -> None:
    """Let `writer` write a folder, and put it at `path` once all of it is on disk."""
    refuse_folder(path, overwrite)
    part, old = (path.with_name(f".{secrets.token_hex(8)}.part") for _ in range(2))
    with writing(path):
        try:
            writer(part)
            for file in part.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as opened:
                        os.fsync(opened.fileno())
            if path.exists():
                path.replace(old)
            try:
                rename(part, path)
            except OSError:
                if old.exists():
                    old.replace(path)
                raise
        finally:
            for folder in (part, old):
                shutil.rmtree(folder, ignore_errors=True)
