"""Predicting image files: `Run.stream`, alternating with a plain PyTorch loop over Pillow, on the 10,000 CIFAR-10 test files.

Needs a run, `python -m benchmarks.predict RUN`, and ALEXNET_TEST_DATA. The loop is what a tutorial would contain: open,
convert, resize, scale, stack batches of 128, the network's plain layers in float32, softmax. Both use the same number of
threads.
"""

from __future__ import annotations

import json
import resource
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmarks.turns import in_turn, ratios, real_data, spread, timed, trained_run
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

import alexnet
from alexnet.inference.predict import BATCH, find_images

ROUNDS = 3


def plain(run: alexnet.Run, paths: list[Path]) -> list[str]:
    """Return the best label of each file by the plain loop."""
    preprocessing = run.config.preprocessing
    layers = nn.Sequential(*run.network.layers.values()).float().eval()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    labels: list[str] = []
    with torch.no_grad():
        for first in range(0, len(paths), BATCH):
            images = []
            for path in paths[first : first + BATCH]:
                image = Image.open(path).convert("RGB").resize((preprocessing.side, preprocessing.side))
                levels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() * preprocessing.value_range / 255
                images.append((levels - mean) / deviation)
            probabilities = layers(interpolate(torch.stack(images), scale_factor=float(preprocessing.upscale))).softmax(1)
            labels += [run.labels[i] for i in probabilities.argmax(1)]
    return labels


if __name__ == "__main__":
    paths, run = find_images([real_data() / "cifar10" / "test"]), trained_run()
    answers: dict[str, list[str]] = {}

    ways: dict[str, Callable[[], list[str]]] = {
        "alexnet": lambda: [answer["predictions"][0]["label"] for answer in run.stream(paths)],
        "plain loop": lambda: plain(run, paths),
    }
    list(run.stream(paths[:BATCH]))  # workers started
    times = in_turn({way: timed(lambda way=way: answers.update({way: ways[way]()})) for way in ways}, ROUNDS, warm_up=0)
    for way, taken in times.items():
        print(f"{way:12} {spread([len(paths) / seconds for seconds in taken], '.0f')} files/s")
    faster = ratios(times["plain loop"], times["alexnet"])
    same = np.mean([a == b for a, b in zip(*answers.values(), strict=True)])
    print(f"{spread(faster)} times as fast; the same label for {same:.1%}")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most")
    print(json.dumps({"benchmark": "predict", "ratio": statistics.median(faster), "same": same}))
