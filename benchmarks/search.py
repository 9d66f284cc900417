"""Search of CIFAR-10 by a run's codes: precision, size of the index, and time of a query.

Needs a run trained on CIFAR-10, `python -m benchmarks.search RUN`, and ALEXNET_TEST_DATA. Peers in the same run: pixels and
chance for precision, NumPy over all codes in memory for time. Temporarily takes 1.5 GB of disk and 3 GB of memory.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from benchmarks.turns import in_turn, real_data, spread, timed, trained_run

import alexnet
from alexnet.inference.features import stream_features
from alexnet.inference.predict import find_images, iter_images
from alexnet.search import hashing
from alexnet.search.index import BINARY, CODER, CODES, Entry, Index, open_index
from alexnet.search.search import BITS, code_layer, nearest

TOP, ROWS, ROUNDS, MADE_UP = 10, 500, 30, 1_000_000


def build_index(path: Path, images: list[str], codes: np.ndarray, bits: int = BITS) -> Index:
    """Build an index of codes by the steps of `Run.index`."""
    path.mkdir()
    index = Index(path, "", codes.shape[1]).add([Entry(image, 0, 0) for image in images], codes)
    return index.add_coder(hashing.learn(codes[: hashing.MAX_CODES], bits))


def precision(labels: np.ndarray, found: Callable[[slice], np.ndarray]) -> float:
    """Return the mean fraction of the 10 nearest that have the query's label. Each image is a query, itself left out.

    `found` returns the rows of the 11 nearest to a slice of queries, nearest first.
    """
    neighbours = np.concatenate([found(slice(first, first + ROWS)) for first in range(0, len(labels), ROWS)])
    fractions = [np.mean(labels[rows[rows != own][:TOP]] == labels[own]) for own, rows in enumerate(neighbours)]
    return float(np.mean(fractions))


def brute_force(x: np.ndarray, squares: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of x nearest to each query by brute force in NumPy, nearest first."""
    distances = squares - 2 * queries @ x.T  # |x|² - 2 q x: the squared distance minus |q|²
    best = np.argpartition(distances, count, axis=1)[:, :count]
    return np.take_along_axis(best, np.take_along_axis(distances, best, 1).argsort(1), 1)


def precisions(run: alexnet.Run, folder: Path, place: Path) -> dict[str, float]:
    """Measure the precision on the images of a folder of class folders."""
    paths = find_images([folder])
    labels = np.unique([path.parent.name for path in paths], return_inverse=True)[1]
    layer, preprocessing = code_layer(run.network), run.config
    codes = np.concatenate(
        [b.layers[layer] for b in stream_features(run.network, preprocessing, paths, [layer], preprocessing.precision)]
    )
    pixels = np.stack([image for _, image in iter_images(paths, preprocessing.preprocessing)]).reshape(len(paths), -1)
    pixels, counts = pixels.astype(np.float32), np.bincount(labels)
    squares = np.square(pixels).sum(1)
    found = {"chance": float((counts * (counts - 1)).sum() / len(labels) / (len(labels) - 1))}
    found["pixels"] = precision(labels, lambda part: brute_force(pixels, squares, pixels[part], TOP + 1))
    short = build_index(place / "pixels", list(map(str, paths)), pixels).short_codes
    found[f"pixels, {BITS} bits"] = precision(labels, lambda part: faiss.knn_hamming(short[part], short, TOP + 1)[1])
    for bits in (64, BITS):
        short = build_index(place / str(bits), list(map(str, paths)), codes, bits).short_codes
        found[f"{bits} bits"] = precision(labels, lambda part, s=short: faiss.knn_hamming(s[part], s, TOP + 1)[1])
    found["exact"] = precision(labels, lambda part: faiss.knn(codes[part], codes, TOP + 1)[1])
    for name, share in found.items():
        print(f"  precision at {TOP}: {share:6.1%}  {name}")
    return found


def queried(ways: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Time all methods in turn on one query after another, given by number; print and return the median milliseconds."""
    calls = {way: timed(partial(lambda call, numbers: call(next(numbers)), call, count())) for way, call in ways.items()}
    times = {way: [1000 * seconds for seconds in taken] for way, taken in in_turn(calls, ROUNDS, warm_up=2).items()}
    for way, taken in times.items():
        print(f"  {way:34} {spread(taken)} ms")
    return {way: statistics.median(taken) for way, taken in times.items()}


def of_files(run: alexnet.Run, folder: Path, place: Path) -> dict[str, Any]:
    """Index the files of a folder by `Run.index`, measure the size of the index, and search it for some of its images."""
    start = time.perf_counter()
    images = run.index(folder, place)["images"]
    seconds = time.perf_counter() - start
    print(f"  {images:,} files indexed in {seconds:.0f} s by Run.index: decoded, coded, written, short codes learned")
    index = open_index(place, run.config.sha256)
    exact, binary, coder = ((place / name).stat().st_size for name in (CODES, BINARY, CODER))
    print(f"  exact {exact / 1e6:,.1f} MB, binary {binary / 1e6:.2f} MB: 1/{exact / binary:.0f}; coder {coder / 1e6:.2f} MB")
    codes = np.array(index.codes)
    squares, short = np.square(codes).sum(1), index.coder.encode(codes).view(np.uint64)
    paths = [Path(entry.path) for entry in index.entries if entry]
    chosen = np.random.default_rng(0).integers(0, len(paths), ROUNDS + 2)

    def hamming(query: np.ndarray) -> np.ndarray:
        return np.argpartition(np.bitwise_count(short ^ index.coder.encode(query).view(np.uint64)).sum(1), TOP)[:TOP]

    for row in chosen[:5]:  # faiss and NumPy find the same
        neighbours = [path for path, _ in nearest(index, codes[row], TOP, False, str(paths[row]))]
        others = brute_force(codes, squares, codes[[row]], TOP + 1)[0]
        assert len({*neighbours} & {str(paths[other]) for other in others}) >= TOP - 1
    medians = queried(
        {
            "exact": lambda turn: nearest(index, codes[chosen[turn]], TOP, False),
            "exact, NumPy": lambda turn: brute_force(codes, squares, codes[chosen[[turn]]], TOP),
            "binary": lambda turn: nearest(index, codes[chosen[turn]], TOP, True),
            "binary, NumPy": lambda turn: hamming(codes[chosen[[turn]]]),
            "an image file, exact": lambda turn: run.search(paths[chosen[turn]], TOP, index=place),
            "an image file, binary": lambda turn: run.search(paths[chosen[turn]], TOP, index=place, binary=True),
        }
    )
    ratios = {"ratio": exact / binary, "ratio_with_coder": exact / (binary + coder)}
    return {"images": images, "index_seconds": seconds, "binary_mb": binary / 1e6, **ratios, "ms": medians}


def of_a_million(place: Path) -> float:
    """Search random short codes, from codes of 128 numbers to avoid a file of 16 GB; return the milliseconds."""
    chance = np.random.default_rng(0)
    codes = chance.standard_normal((MADE_UP, 128), dtype=np.float32)
    index = build_index(place, [f"/images/{row:07}.jpg" for row in range(MADE_UP)], codes)
    queries = chance.standard_normal((ROUNDS + 2, 128), dtype=np.float32)
    return queried({f"binary, {MADE_UP:,} made up": lambda turn: nearest(index, queries[turn], TOP, True)}).popitem()[1]


if __name__ == "__main__":
    root, run = real_data(), trained_run()
    print(f"{run.path}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as place:
        found = {"precision": precisions(run, root / "cifar10" / "test", Path(place))}
    with tempfile.TemporaryDirectory() as place:
        found |= of_files(run, root / "cifar10", Path(place, "index"))
    with tempfile.TemporaryDirectory() as place:
        found["ms_million"] = of_a_million(Path(place, "index"))
    print(json.dumps({"benchmark": "search", **found}))
