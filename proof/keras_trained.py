"""Train the tutorials' networks for a few steps in Keras, and say what they see: `python -m proof.keras_trained REAL FOLDER`.

REAL is the folder of real images that the tests take (`ALEXNET_TEST_DATA`). Writes, for each tutorial, `<name>.keras` and
`<name>.npz`: 100 photos as decoded pixels, and Keras' probabilities for them through the tutorial's own preprocessing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ |= {"TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}

import keras
import numpy as np
import tensorflow as tf
from keras.src.legacy.preprocessing.image import ImageDataGenerator
from numpy.typing import NDArray
from PIL import Image
from proof.inputs import MEAN, Question
from proof.keras_networks import build

STEPS, PHOTOS = 4, 100

Photo = NDArray[np.uint8]


def decoded(paths: list[Path]) -> list[Photo]:
    """Return the pixels of image files, H W 3."""
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def some(real: Path, pattern: str) -> list[Path]:
    """Return `PHOTOS` of the files that match, from all over the list."""
    paths = sorted(real.glob(pattern))
    return paths[:: len(paths) // PHOTOS][:PHOTOS]


def annotated(real: Path, network: keras.Model) -> tuple[list[Photo], NDArray[np.float32]]:
    """Tutorial 000, on Imagenette: class folders, batches of 2, resized, less one mean, turned."""

    def prepare(image: tf.Tensor) -> tf.Tensor:
        return tf.image.flip_left_right(tf.image.resize(image, (224, 224)) - MEAN)

    train = keras.utils.image_dataset_from_directory(
        real / "imagenette" / "train", label_mode="categorical", batch_size=2, image_size=(224, 224), shuffle=True, seed=123
    )
    network.fit(train.take(STEPS).map(lambda x, y: (tf.image.flip_left_right(x - MEAN), y)), verbose=0, shuffle=False)
    photos = decoded(some(real, "imagenette/val/*/*.JPEG"))
    return photos, network.predict(np.stack([prepare(photo) for photo in photos]), batch_size=20, verbose=0)


def cats_dogs(real: Path, network: keras.Model) -> tuple[list[Photo], NDArray[np.float32]]:
    """Tutorial 001: nearest neighbours, values from 0 to 1, Keras' augmentation in training."""
    paths = some(real, "cats-dogs/train/*.jpg")
    inputs = np.stack(
        [keras.utils.img_to_array(keras.utils.load_img(p, target_size=(227, 227), interpolation="nearest")) for p in paths]
    )
    labels = np.eye(2)[[int(path.name.startswith("dog")) for path in paths]]
    changes = ImageDataGenerator(
        rescale=1 / 255,
        zoom_range=[0.8, 1.5],
        shear_range=0.2,
        horizontal_flip=True,
        vertical_flip=True,
        width_shift_range=0.3,
        height_shift_range=0.3,
        rotation_range=30,
    )
    network.fit(changes.flow(inputs, labels, batch_size=32), steps_per_epoch=STEPS - 1, verbose=0)
    return decoded(paths), network.predict(inputs / 255, batch_size=20, verbose=0)


def cifar10(real: Path, network: keras.Model) -> tuple[list[Photo], NDArray[np.float32]]:
    """Tutorials 002 and 003: each image standardised by itself, then enlarged."""

    def prepare(image: tf.Tensor) -> tf.Tensor:
        return tf.image.resize(tf.image.per_image_standardization(image), (227, 227))

    paths = sorted(real.glob("cifar10/train/*/*.jpg"))[:: 50_000 // (32 * STEPS)][: 32 * STEPS]
    labels = np.array([sorted({p.parent.name for p in paths}).index(path.parent.name) for path in paths])
    train = np.stack([prepare(photo) for photo in decoded(paths)])
    network.fit(train, labels, batch_size=32, verbose=0)
    photos = decoded(some(real, "cifar10/test/*/*.jpg"))
    return photos, network.predict(np.stack([prepare(photo) for photo in photos]), batch_size=20, verbose=0)


WAYS: dict[str, tuple[Question, Callable[[Path, keras.Model], tuple[list[Photo], NDArray[np.float32]]]]] = {
    "annotated": (Question("annotated", 224, 10, 0), annotated),
    "cats-dogs": (Question("cats-dogs", 227, 2, 0), cats_dogs),
    "cifar10-1x1": (Question("cifar10-1x1", 227, 10, 0), cifar10),
    "cifar10": (Question("cifar10", 227, 10, 0), cifar10),
}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m proof.keras_trained REAL FOLDER")
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    for name, (question, way) in WAYS.items():
        keras.utils.set_random_seed(0)
        model = build(question, dropout=0.5)
        pictures, probabilities = way(source, model)
        model.save(target / f"{name}.keras")
        arrays = {f"photo{i:03}": picture for i, picture in enumerate(pictures)}
        np.savez(target / f"{name}.npz", probabilities=probabilities, **arrays)
        print(
            f"{name}: trained {STEPS} steps, {len(pictures)} photos, largest probability {probabilities.max():.3f}", flush=True
        )
