"""Train a small AlexNet on 1,797 handwritten digits, in NumPy alone: `python -m alexnet.scratch`.

The same layers as the large one, fewer of each. scikit-learn only brings the digits.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from alexnet.scratch.layer import Array
from alexnet.scratch.network import SGD, AlexNet, block, hidden

SMALL = (
    *block(24, 5, "norm", "pool", padding="valid"),  # 32 -> 28 -> 13 pixels a side
    *block(48, 5, "norm", "pool"),  # -> 6
    *block(64, 3),
    *block(64, 3),
    *block(48, 3, "pool"),  # -> 2
    {"layer": "Flatten"},
    *hidden(256),
    *hidden(256),
    {"layer": "Dense", "units": 10},
)
EPOCHS, BATCH, RATE = 10, 32, 0.01
WARM_UP = 45  # steps until the rate is reached: before, large ones would kill ReLUs
TEST = 359  # a fifth, held out


def digits() -> tuple[Array, NDArray[np.int64]]:
    """Return 1,797 images of 32x32x1, shuffled, about -1 to 1, and what they show."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = found.images[order].astype(np.float32) / 8 - 1
    return images.repeat(4, 1).repeat(4, 2)[..., None], found.target[order]


def accuracy(network: AlexNet, images: Array, targets: NDArray[np.int64]) -> float:
    """Return the share of images whose best class is right."""
    return float((network.forward(images).argmax(1) == targets).mean())


def main() -> float:
    """Train with progress on standard error; print and return the accuracy on the test images."""
    images, targets = digits()
    train, test = slice(TEST, None), slice(TEST)
    network, optimizer = AlexNet(SMALL), SGD(RATE, momentum=0.9, decay=5e-4)
    chance, began = np.random.default_rng(1), time.monotonic()
    count, step = len(targets) - TEST, 0
    steps = EPOCHS * -(-count // BATCH)
    for epoch in range(EPOCHS):
        losses = []
        order = chance.permutation(count)
        for start in range(0, count, BATCH):
            step += 1
            optimizer.rate = RATE * min(1, step / WARM_UP) * (1 - step / steps)
            batch = order[start : start + BATCH]
            losses.append(network.learn(images[train][batch], targets[train][batch], optimizer))
        left = (time.monotonic() - began) / (epoch + 1) * (EPOCHS - epoch - 1)
        print(f"epoch {epoch + 1}/{EPOCHS}  loss {np.mean(losses):.3f}  {left:.0f} s left", file=sys.stderr, flush=True)
    right = accuracy(network, images[test], targets[test])
    print(f"test accuracy {right:.2%} of {TEST} digits, in {time.monotonic() - began:.0f} s")
    return right


if __name__ == "__main__":
    main()
