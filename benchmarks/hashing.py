"""Binary codes of raw pixels against binary codes of features: precision of the nearest images.

    python -m benchmarks.hashing RUN…

The runs are trained on CIFAR-10 with different seeds; needs ALEXNET_TEST_DATA. For each run, other 2,000 test images are drawn.
The auto-encoder is the same for both, `alexnet.search.hashing`. Intervals are 95 % over runs (Student's t).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import faiss
import numpy as np
from benchmarks.search import TOP, precision
from benchmarks.turns import real_data, skip

import alexnet
from alexnet.ablation.run import summarise
from alexnet.inference.predict import find_images, iter_images
from alexnet.search import hashing
from alexnet.search.search import BITS, code_layer

IMAGES = 2000


def exact(codes: np.ndarray, labels: np.ndarray) -> float:
    """Return the precision of the nearest by Euclidean distance."""
    return precision(labels, lambda part: faiss.knn(codes[part], codes, TOP + 1)[1])


def binary(codes: np.ndarray, labels: np.ndarray) -> float:
    """Return the precision of the nearest by binary codes, learned from the same images."""
    short = hashing.learn(codes, BITS).encode(codes)
    return precision(labels, lambda part: faiss.knn_hamming(short[part], short, TOP + 1)[1])


def precisions(run: alexnet.Run, paths: list[Path]) -> dict[str, float]:
    """Return the precision by each kind of code on some images."""
    labels = np.unique([path.parent.name for path in paths], return_inverse=True)[1]
    counts, layer = np.bincount(labels), code_layer(run.network)
    features = run.features(paths, [layer])[layer]
    pixels = np.stack([image for _, image in iter_images(paths, run.config.preprocessing)])
    pixels = pixels.reshape(len(paths), -1).astype(np.float32)
    return {
        "chance": float((counts * (counts - 1)).sum() / len(labels) / (len(labels) - 1)),
        f"{pixels.shape[1]:,} pixel values": exact(pixels, labels),
        f"pixels, {BITS} bits": binary(pixels, labels),
        f"{features.shape[1]:,} features": exact(features, labels),
        f"features, {BITS} bits": binary(features, labels),
    }


if __name__ == "__main__":
    runs = sys.argv[1:] or skip("name runs trained on CIFAR-10: python -m benchmarks.hashing RUN…")
    files = find_images([real_data() / "cifar10" / "test"])
    found = []
    for seed, name in enumerate(runs):
        drawn = np.random.default_rng(seed).permutation(len(files))[:IMAGES]
        found.append(precisions(alexnet.load(name), [files[row] for row in drawn]))
    results = {}
    for way in found[0]:
        values = [each[way] for each in found]
        results[way] = summarise(values, values, ratio=False)
        low, high = results[way]["mean_interval"] or (np.nan, np.nan)
        seeds = ", ".join(f"{value:.1%}" for value in values)
        print(f"  precision at {TOP}: {results[way]['mean']:6.1%} ({low:.1%} to {high:.1%})  {way}  [{seeds}]")
    print(json.dumps({"benchmark": "hashing", "precision": {way: each["values"] for way, each in results.items()}}))
