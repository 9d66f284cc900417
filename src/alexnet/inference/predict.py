"""Images -> labels with probabilities, in the order given; an unreadable one is answered with its error."""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode_pool import InMemoryImage, Source, decoded
from alexnet.data.preprocessing import PixelArray, fit_image
from alexnet.data.scan import is_alexnet_folder, visible, visible_files, visible_folders
from alexnet.errors import DataError, ImageError, error_reason, truncate
from alexnet.files import expanded
from alexnet.inference.forward import probabilities
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Preprocessing
from alexnet.run import ModelConfig

BATCH = 128


def find_images(names: Iterable[str | Path]) -> list[Path]:
    """Return the files that `names` mean: files, folders (searched recursively, hidden ones and runs passed over), patterns.

    A text may be a pattern, of which each part that is there by that very name stands for itself: in `photos [1]/*.png` the
    folder's brackets, where there is such a folder. A `Path` is never a pattern.

    Raises:
        DataError: a name that is empty; a pattern that matches nothing; a folder without files, or one that cannot be read.
    """
    result: list[Path] = []
    for name in names:
        if not str(name):
            raise DataError("the name of an image is empty: name files, folders or patterns")
        try:
            result += _files(name)
        except OSError as error:
            raise DataError(f"cannot read {truncate(error.filename or name)}: {error_reason(error)}") from error
    return result


def _files(name: str | Path) -> list[Path]:
    """Return the files that a name means; one that is not there means itself, and is answered with its error."""
    path = expanded(name)
    pattern = isinstance(name, str) and not os.path.lexists(path) and glob.has_magic(name)
    places = list(dict.fromkeys(_matches(Path(path.anchor), path.relative_to(path.anchor).parts))) if pattern else [path]
    if not places:
        raise DataError(f"no image {truncate(name)!r}: no file matches it")
    files = [file for place in places for file in (visible_files(place) if os.path.isdir(place) else [place])]
    if not files and not any(
        is_alexnet_folder(inner) for place in places for inner in visible(place)[0]
    ):  # as in `runs`, which is told
        raise DataError(f"no image in {truncate(name)!r}: it holds no files (names that begin with a dot are passed over)")
    return files


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Yield what a pattern's `parts` mean in `folder`, sorted; a part that is there by that very name is none."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if os.path.lexists(folder / part) or not glob.has_magic(part):
        names = [part] if os.path.lexists(folder / part) else []
    elif part == "**":
        inside = visible_folders(folder)
        yield from (file for each in inside for file in (_matches(each, rest) if rest else visible(each)[1]))
        return
    else:
        names = sorted(glob.glob(part, root_dir=folder))
    for name in names:
        yield from _matches(folder / name, rest)


def predict(network: AlexNet, config: ModelConfig, sources: Iterable[Source], top: int = 5) -> Iterator[dict[str, Any]]:
    """Yield an answer for each source in order: `{"image", "predictions": [{"label", "probability"}]}` or `{"image", "error"}`.

    Probabilities are calibrated with the run's temperature. Images are decoded
    ahead by other processes and looked at a batch at a time, so memory stays bounded however many there are.
    """
    with closing(iter_images(sources, config.preprocessing)) as images:
        while batch := list(islice(images, BATCH)):
            readable = [image for _, image in batch if isinstance(image, np.ndarray)]
            answers: Iterator[NDArray[np.float64]] = iter(probabilities(network, config, readable) if readable else ())
            for source, image in batch:
                name = source_name(source)
                if isinstance(image, ImageError):
                    yield {"image": name, "error": str(image)}
                else:
                    yield {"image": name, "predictions": best(next(answers), config.labels, top)}


def source_name(source: Source) -> str:
    """Return a path as text, or the name of what was given without one."""
    return str(source) if isinstance(source, Path) else source.name if isinstance(source, InMemoryImage) else "array"


def iter_images(
    sources: Iterable[Source], preprocessing: Preprocessing
) -> Generator[tuple[Source, PixelArray | ImageError], None, None]:
    """Yield each source with its image as batches hold it (S S 3), or with the reason for none; others decode ahead."""
    ahead = 0 if preprocessing.cache_size == "full" else BATCH
    with closing(decoded("pixels", sources, os.cpu_count() or 1, ahead, **preprocessing.decode_options())) as result:
        for source, answer in result:
            yield source, answer if isinstance(answer, ImageError) else fit_image(answer.pixels, preprocessing)


def best(row: NDArray[np.float64], labels: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    """Return the `top` labels of an image with their probabilities, best first."""
    first = np.argsort(-row, kind="stable")[:top]
    return [{"label": labels[i], "probability": float(row[i])} for i in first]
