"""Prediction: find images, decode them, and return their most probable labels or an error."""

import glob
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode_pool import InMemoryImage, Source, decode_all
from alexnet.data.preprocessing import PixelArray, fit_image
from alexnet.data.scan import is_alexnet_folder, visible, visible_files, visible_folders
from alexnet.errors import DataError, ImageError, error_reason, truncate
from alexnet.files import expand_user
from alexnet.inference.forward import classify
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Preprocessing
from alexnet.run import ModelConfig

BATCH = 128
Decoded = tuple[Source, PixelArray | ImageError]  # with its image S S 3, or why it cannot be read


def find_images(names: Iterable[str | Path]) -> list[Path]:
    """Return the files that `names` refer to: files, folders (recursively, without hidden ones and runs), and patterns.

    A part of a pattern that exists under that exact name is taken literally: in `photos [1]/*.png`, the brackets, if there is
    such a folder. A `Path` is never a pattern.
    """
    files: list[Path] = []
    for name in names:
        if not str(name):
            raise DataError("the name of an image is empty: name files, folders or patterns")
        try:
            files += _expand(name)
        except OSError as error:
            raise DataError(f"cannot read {truncate(error.filename or name)}: {error_reason(error)}") from error
    return files


def _expand(name: str | Path) -> list[Path]:
    """Return the files that a name refers to; a missing file is returned, too, to be reported when it is read."""
    path = expand_user(name)
    is_pattern = isinstance(name, str) and not os.path.lexists(path) and glob.has_magic(name)
    paths = list(dict.fromkeys(_matches(Path(path.anchor), path.relative_to(path.anchor).parts))) if is_pattern else [path]
    if not paths:
        raise DataError(f"no image {truncate(name)!r}: no file matches it")
    files = [file for path in paths for file in (visible_files(path) if os.path.isdir(path) else [path])]
    # If it holds only folders that alexnet made, `visible_files` has reported them: no error.
    if not files and not any(is_alexnet_folder(folder) for path in paths for folder in visible(path)[0]):
        raise DataError(f"no image in {truncate(name)!r}: it holds no files (hidden ones are skipped)")
    return files


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Yield the paths in `folder` that match a pattern's `parts`, sorted; parts that exist are taken literally."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if os.path.lexists(folder / part) or not glob.has_magic(part):
        names = [part] if os.path.lexists(folder / part) else []
    elif part == "**":
        for inner in visible_folders(folder):
            yield from _matches(inner, rest) if rest else visible(inner)[1]
        return
    else:
        names = sorted(glob.glob(part, root_dir=folder))
    for name in names:
        yield from _matches(folder / name, rest)


def predict(
    network: AlexNet, config: ModelConfig, sources: Iterable[Source], top: int = 5, views: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield `{"image"}` with an `answer`, or with `"error"`, for each source, in order; probabilities are means over `views`.

    Images are decoded ahead in other processes and classified in batches; memory is bounded for any number of them.
    """
    with closing(iter_images(sources, config.preprocessing)) as images:
        while batch := list(islice(images, BATCH)):
            readable = [image for _, image in batch if isinstance(image, np.ndarray)]
            answers = iter(classify(network, config, readable, views) if readable else ())
            for source, image in batch:
                name = source_name(source)
                if isinstance(image, ImageError):
                    yield {"image": name, "error": str(image)}
                else:
                    yield {"image": name, **answer(*next(answers), config.labels, top)}


def source_name(source: Source) -> str:
    """Return the name of a source in results: its path, or a name such as `array`."""
    return str(source) if isinstance(source, Path) else source.name if isinstance(source, InMemoryImage) else "array"


def iter_images(sources: Iterable[Source], preprocessing: Preprocessing) -> Generator[Decoded, None, None]:
    """Yield each source with its decoded image, S S 3, or an error; other processes decode ahead."""
    ahead = 0 if preprocessing.cache_size == "full" else BATCH
    with closing(decode_all("pixels", sources, os.cpu_count() or 1, ahead, **preprocessing.decode_options())) as answers:
        for source, answer in answers:
            yield source, answer if isinstance(answer, ImageError) else fit_image(answer.pixels, preprocessing)


def answer(row: NDArray[np.float64], known: bool | None, labels: tuple[str, ...], top: int) -> dict[str, Any]:
    """Return `{"predictions": [{"label", "probability"}], "known"}`, without `known` if that is None."""
    return {"predictions": best(row, labels, top), **({} if known is None else {"known": known})}


def best(row: NDArray[np.float64], labels: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    """Return the `top` most probable labels of an image with their probabilities."""
    order = np.argsort(-row, kind="stable")[:top]
    return [{"label": labels[i], "probability": float(row[i])} for i in order]
