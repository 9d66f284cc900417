"""Train a small AlexNet on 1,797 handwritten digits, in NumPy only: `python -m alexnet.scratch`.

It has the layers of the full network, with fewer channels and units. scikit-learn only provides the digits.
"""

import sys
import time

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from alexnet.scratch.network import SGD, AlexNet, block, hidden
from alexnet.scratch.windows import Array

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
WARM_UP = 45  # steps until the full learning rate; large steps at the start would leave ReLUs dead
TEST = 359  # images held out, a fifth


def digits() -> tuple[Array, NDArray[np.int64]]:
    """Return 1,797 shuffled images, 32x32x1 with values from -1 to 1, and their classes."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = bunch.images[order].astype(np.float32) / 8 - 1
    return images.repeat(4, 1).repeat(4, 2)[..., None], bunch.target[order]


def accuracy(network: AlexNet, images: Array, targets: NDArray[np.int64]) -> float:
    """Return the fraction of images that are classified correctly."""
    return float((network.forward(images).argmax(1) == targets).mean())


def main() -> float:
    """Train, with progress on standard error; print and return the test accuracy."""
    images, targets = digits()
    train, test = slice(TEST, None), slice(TEST)
    network, optimizer = AlexNet(SMALL), SGD(RATE, momentum=0.9, decay=5e-4)
    rng, start_time = np.random.default_rng(1), time.monotonic()
    count, step = len(targets) - TEST, 0
    steps = EPOCHS * -(-count // BATCH)
    for epoch in range(EPOCHS):
        losses = []
        order = rng.permutation(count)
        for start in range(0, count, BATCH):
            step += 1
            optimizer.rate = RATE * min(1, step / WARM_UP) * (1 - step / steps)
            batch = order[start : start + BATCH]
            losses.append(network.learn(images[train][batch], targets[train][batch], optimizer))
        left = (time.monotonic() - start_time) / (epoch + 1) * (EPOCHS - epoch - 1)
        print(f"epoch {epoch + 1}/{EPOCHS}  loss {np.mean(losses):.3f}  {left:.0f} s left", file=sys.stderr, flush=True)
    score = accuracy(network, images[test], targets[test])
    print(f"test accuracy {score:.2%} of {TEST} digits, in {time.monotonic() - start_time:.0f} s")
    return score


if __name__ == "__main__":
    main()
