"""The inputs for both Keras and ours, from seeds: weights, batches, photos, losses and file names. No results are here."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

SEED = 2012
BATCH = 2  # images
STEPS = 5  # number of training steps, all on the same batch
SAMPLES = 64  # number of values of each tensor that golden files keep
MEAN = 113.25  # the constant that the `annotated` preprocessing subtracts, in grey levels

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


class Question(NamedTuple):
    """A network: the recipe and variant of that name, pixels per side, classes, number of the batch.

    In float32, a ReLU with an input close to zero, or a pool with two almost equal values, may decide differently in another
    library; one such decision changes earlier gradients by a thousandth. So the batch is the one of 600 with the clearest
    decisions: even the closest one is 6 times the error of float32 there.
    """

    name: str
    size: int
    classes: int
    batch: int


QUESTIONS = (
    Question("annotated", 224, 16, batch=395),
    Question("cats-dogs", 227, 2, batch=260),
    Question("cifar10-1x1", 227, 10, batch=248),
    Question("cifar10", 227, 10, batch=54),
)


# Weights and batches ------------------------------------------------------------------------------------------------------


def glorot_limit(shape: tuple[int, ...]) -> float:
    """Return sqrt(6 / (fan_in + fan_out)) of a kernel in Keras' layout: H W in out, or in x out."""
    return float(np.sqrt(6 / (np.prod(shape[:-1]) + np.prod(shape[:-2]) * shape[-1])))


# By the tensor's name in Keras. No value is 0 or 1, so a missing term or two swapped tensors would show.
DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Floats]] = {
    "kernel": lambda rng, shape: rng.uniform(-glorot_limit(shape), glorot_limit(shape), shape),
    "bias": lambda rng, shape: rng.normal(0, 0.05, shape),
    "gamma": lambda rng, shape: rng.uniform(0.8, 1.2, shape),
    "beta": lambda rng, shape: rng.normal(0, 0.1, shape),
    "moving_mean": lambda rng, shape: rng.normal(0, 0.1, shape),
    "moving_variance": lambda rng, shape: rng.uniform(0.8, 1.2, shape),
}


def draw_weights(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, Floats]]:
    """Yield a float64 array for each (name, shape): `conv1.kernel`, `conv1.bias`, `norm1.gamma` ... `fc8.bias`, in that order.

    All are drawn in order from one generator with `SEED`, by `DRAWS`; shapes are Keras'.
    """
    rng = np.random.default_rng(SEED)
    for name, shape in shapes:
        yield name, DRAWS[name.partition(".")[2]](rng, shape)


def draw_batch(question: Question) -> tuple[Floats, NDArray[np.int64]]:
    """Return images (N S S 3, normal; each channel with its own mean and deviation) and targets (N)."""
    rng = np.random.default_rng([SEED, question.size, question.classes, question.batch])
    images = rng.normal(0, 1, (BATCH, question.size, question.size, 3)) * [0.8, 1.0, 1.2] + [-0.2, 0.0, 0.3]
    return images, rng.integers(0, question.classes, BATCH)


def places(name: str, count: int, samples: int = SAMPLES) -> NDArray[np.int64]:
    """Return the positions, from 0 up to `count`, at which golden files keep values of the array `name`."""
    return np.random.default_rng([SEED, zlib.crc32(name.encode())]).integers(0, count, samples)


# Photos -------------------------------------------------------------------------------------------------------------------


def photos() -> dict[str, Pixels]:
    """Return scikit-learn's two photos and crops of them, H W 3: taller, smaller, and as large as the networks' input."""
    china, flower = load_sample_image("china.jpg"), load_sample_image("flower.jpg")  # 427 x 640
    return {
        "china": china,
        "flower": flower,
        "higher": np.ascontiguousarray(flower[:, 200:413]),
        "smaller": np.ascontiguousarray(china[40:131, 300:452]),
        "square": np.ascontiguousarray(china[100:327, 200:427]),  # 227 x 227
    }


def small_images() -> dict[str, Pixels]:
    """Return 32 x 32 x 3 images: two downsized photos, one of a single colour, and two that are nearly so.

    TensorFlow divides by a deviation of at least 1 / sqrt(3072). One value that differs by 1 gives a deviation just below that,
    two give one above.
    """
    found = {name: _shrink(photo[:416, 100:516]) for name, photo in photos().items() if name in ("china", "flower")}
    found["constant"] = np.full((32, 32, 3), 77, np.uint8)
    found["one differs"] = found["constant"].copy()
    found["one differs"][5, 9, 1] += 1
    found["two differ"] = found["one differs"].copy()
    found["two differ"][20, 30, 2] += 1
    return found


def _shrink(photo: Pixels) -> Pixels:
    """Downsize 416 x 416 x 3 to 32 x 32 x 3: each pixel is the mean of 13 x 13, rounded."""
    return photo.reshape(32, 13, 32, 13, 3).mean((1, 3)).round().astype(np.uint8)


def digest(images: dict[str, Pixels]) -> str:
    """Return a digest of pixels; if it differs, so does the JPEG decoder, and golden files cannot be compared."""
    return hashlib.sha256(b"".join(image.tobytes() for image in images.values())).hexdigest()


class Affine(NamedTuple):
    """Parameters by Keras' names: degrees, pixels, pixels, degrees, factors; the flips come after the map."""

    theta: float = 0.0
    tx: float = 0.0
    ty: float = 0.0
    shear: float = 0.0
    zx: float = 1.0
    zy: float = 1.0
    flip_horizontal: bool = False
    flip_vertical: bool = False


def affine_maps(side: int) -> list[Affine]:
    """Return eight maps that each do one thing, strongly, then 40 drawn from the ranges of tutorial 001."""
    alone: list[dict[str, Any]] = [
        {"theta": 25.0},
        {"tx": 40.25},
        {"ty": 40.25},
        {"shear": 20.0},
        {"zx": 1.5},
        {"zy": 1.5},
        {"flip_horizontal": True},
        {"flip_vertical": True},
    ]
    rng = np.random.default_rng(SEED)
    reach = np.array([30, 0.3 * side, 0.3 * side, 0.2])
    drawn = [
        Affine(*rng.uniform(-reach, reach).tolist(), *rng.uniform(0.8, 1.5, 2).tolist(), *(rng.random(2) < 0.5).tolist())
        for _ in range(40)
    ]
    return [Affine(**one) for one in alone] + drawn


# Steps --------------------------------------------------------------------------------------------------------------------

# Keras' SGD, beyond what the tutorials set: with momentum, decay beside the gradient and in it give different results.
OPTIMIZERS: tuple[dict[str, Any], ...] = (
    {"momentum": 0.0, "nesterov": False, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": False, "weight_decay": None},
    {"momentum": 0.9, "nesterov": False, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
)
RATES = (0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.5, 0.5)  # one a step


def draw_gradients(count: int = 8) -> tuple[Floats, Floats]:
    """Return an initial vector, and a gradient for each of `RATES`."""
    rng = np.random.default_rng(SEED)
    return rng.normal(0, 1, count), rng.normal(0, 1, (len(RATES), count))


# Losses -------------------------------------------------------------------------------------------------------------------

EPOCHS = 60
RATE = 0.01
# Settings of ReduceLROnPlateau by Keras' names; the first is tutorial 000's.
PLATEAUS: tuple[dict[str, Any], ...] = (
    {"factor": 0.1, "patience": 10, "min_delta": 1e-4, "min_lr": 1e-6},
    {"factor": 0.5, "patience": 3, "min_delta": 1e-4, "min_lr": 1e-3},
    {"factor": 0.1, "patience": 1, "min_delta": 0.0, "min_lr": 1e-8},
    {"factor": 0.2, "patience": 5, "min_delta": 0.05, "min_lr": 1e-5},
)
PATIENCE = 10  # of EarlyStopping in tutorial 000


def loss_series() -> list[list[float]]:
    """Return 1,000 series of `EPOCHS` losses: they fall with noise, stay flat, repeat, are rounded, or fall very slowly."""
    rng = np.random.default_rng(SEED)
    found = []
    for number in range(1000):
        epoch = np.arange(EPOCHS)
        trend = rng.uniform(0.5, 3) * np.exp(-epoch / rng.uniform(3, 40)) + rng.uniform(0.1, 2)
        losses = trend + rng.normal(0, 10 ** rng.uniform(-5, -0.5), EPOCHS)
        if number % 6 == 1:  # flat from some epoch on
            losses[rng.integers(0, 30) :] = losses[-1]
        elif number % 6 == 2:  # four decimals, as printed: improvements of exactly the threshold occur
            losses = losses.round(4)
        elif number % 6 == 3:  # few levels, so many repeated values
            losses = losses.round(1)
        elif number % 6 == 4:  # slow: each epoch gains about the threshold
            losses = 1 - 1e-4 * rng.uniform(0, 2, EPOCHS).cumsum()
        elif number % 6 == 5:  # each epoch gains less than float32 resolves, and Keras compares in float32
            losses = 1 - 1e-8 * rng.uniform(0, 1, EPOCHS).cumsum()
        found.append(losses.tolist())
    return found


# File names ---------------------------------------------------------------------------------------------------------------


def class_files() -> list[str]:
    """Return 513 names in 16 class folders of unequal size; their order as text differs from their order by number."""
    classes = [int(16 * (number / 513) ** 1.5) for number in range(513)]
    return [f"{'Class' if c % 3 else 'class'}-{c}/{'IMG' if i % 7 else 'img'}_{i}.png" for i, c in enumerate(classes)]


def labelled_files() -> list[str]:
    """Return 1,000 sorted names that begin with their label, 500 per class."""
    return sorted(f"{label}.{number}.png" for label in ("cat", "dog") for number in range(500))
