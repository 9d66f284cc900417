"""Predicting image files: `Run.stream` against a plain PyTorch loop over Pillow, in turn, on the 10,000 test files of CIFAR-10.

Needs a run, `python benchmarks/predict.py RUN`, and ALEXNET_TEST_DATA. The loop is what a tutorial would write: open, convert,
resize, scale, stack batches of 128, the network's plain layers in float32, softmax. Both use the same threads.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

import alexnet
from alexnet.use.predict import BATCH, find_images

ROUNDS = 3


def plain(run: alexnet.Run, paths: list[Path]) -> list[str]:
    """Return the best label of each file by the plain loop."""
    how = run.card.preprocessing
    layers = nn.Sequential(*run.network.layers.values()).float().eval()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.deviation))
    labels: list[str] = []
    with torch.no_grad():
        for first in range(0, len(paths), BATCH):
            images = []
            for path in paths[first : first + BATCH]:
                image = Image.open(path).convert("RGB").resize((how.side, how.side))
                levels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() * how.levels / 255
                images.append((levels - mean) / deviation)
            probabilities = layers(interpolate(torch.stack(images), scale_factor=float(how.enlarge))).softmax(1)
            labels += [run.labels[i] for i in probabilities.argmax(1)]
    return labels


def rate(call: Callable[[], list[str]], count: int) -> tuple[float, list[str]]:
    """Return files a second, and what was answered."""
    start = time.perf_counter()
    answers = call()
    return count / (time.perf_counter() - start), answers


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (root := os.environ.get("ALEXNET_TEST_DATA")):
        sys.exit("usage: python benchmarks/predict.py RUN, of a run trained on CIFAR-10; ALEXNET_TEST_DATA names real images")
    run = alexnet.load(sys.argv[1])
    paths = find_images([Path(root, "cifar10", "test")])
    ways: dict[str, Callable[[], list[str]]] = {
        "alexnet": lambda: [answer["predictions"][0]["label"] for answer in run.stream(paths)],
        "plain loop": lambda: plain(run, paths),
    }
    list(run.stream(paths[:BATCH]))  # workers started
    rates: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, list[str]] = {}
    for _ in range(ROUNDS):
        for way, call in ways.items():
            found, answers[way] = rate(call, len(paths))
            rates[way].append(found)
    for way, found in rates.items():
        print(f"{way:12} median {statistics.median(found):7.0f} files/s, {min(found):.0f} to {max(found):.0f}")
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    same = np.mean([a == b for a, b in zip(*answers.values(), strict=True)])
    print(
        f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}); the same label for {same:.1%}"
    )
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most")
    print(json.dumps({"benchmark": "predict", "ratio": statistics.median(ratios), "same": same}))
