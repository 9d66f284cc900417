"""What the tutorials' code makes of images, and which files it holds out: TensorFlow, Keras and scikit-learn, as they come."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.legacy.preprocessing.image import apply_affine_transform
from numpy.typing import NDArray
from PIL import Image
from proof.inputs import MEAN, Pixels, affine_maps, class_files, digest, labelled_files, photos, places, small_images
from sklearn.model_selection import train_test_split

Arrays = dict[str, NDArray[Any]]
VALUES = 400  # kept of each image


def _annotated(photo: Pixels) -> NDArray[np.float32]:
    """Tutorial 000: the file is resized as it is read, then the mean goes, then left becomes right."""
    resized = tf.image.resize(photo, (224, 224), method="bilinear")
    return tf.image.flip_left_right(resized - MEAN).numpy()


def _cats_dogs(photo: Pixels) -> NDArray[np.float32]:
    """Tutorial 001: `flow_from_dataframe` reads with `load_img`, whose interpolation is nearest by default; then / 255."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, format="PNG")
    file.seek(0)
    image = keras.utils.load_img(file, target_size=(227, 227), interpolation="nearest")
    return keras.utils.img_to_array(image) * np.float32(1.0 / 255)


def _cifar10(image: Pixels) -> NDArray[np.float32]:
    """Tutorials 002 and 003: each image by itself, then larger."""
    return tf.image.resize(tf.image.per_image_standardization(image), (227, 227)).numpy()


def inputs() -> Arrays:
    """Return for each recipe and image the norm of what the network would see, and values of it (H W 3) at `places`."""
    found: Arrays = {}
    for recipe, images, make in (
        ("annotated", photos(), _annotated),
        ("cats-dogs", photos(), _cats_dogs),
        ("cifar10", small_images(), _cifar10),
    ):
        for name, image in images.items():
            made = make(image)
            values = made.reshape(-1)[places(name, made.size, VALUES)]
            found[f"{recipe}/{name}"] = np.array([np.linalg.norm(made.astype(np.float64)), *values], dtype=np.float64)
    found["photos"] = np.frombuffer(bytes.fromhex(digest(photos() | small_images())), np.uint8)
    return found


def affine() -> Arrays:
    """Return for each map the mean of the transformed 227 x 227 x 3 float32 photo, and values of it at `places`."""
    photo = photos()["square"].astype(np.float32)
    found = []
    for number, parameters in enumerate(affine_maps(photo.shape[0])):
        made = apply_affine_transform(
            photo, *parameters[:6], row_axis=0, col_axis=1, channel_axis=2, fill_mode="nearest", order=1
        )
        # As ImageDataGenerator.apply_transform does afterwards.
        made = made[:, ::-1] if parameters.flip_horizontal else made
        made = made[::-1] if parameters.flip_vertical else made
        found.append([made.mean(dtype=np.float64), *made.reshape(-1)[places(f"map {number}", made.size, VALUES)]])
    return {"maps": np.array(found, dtype=np.float32)}


def held_out() -> dict[str, list[str]]:
    """Return the sorted names that validate: a tenth of 513 by Keras, a quarter of 1,000 by scikit-learn."""
    with tempfile.TemporaryDirectory() as folder:
        image = tf.io.encode_png(tf.zeros((1, 1, 3), tf.uint8)).numpy()
        for name in class_files():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(image)
        dataset = keras.utils.image_dataset_from_directory(
            folder,
            label_mode="categorical",
            image_size=(224, 224),
            batch_size=2,
            seed=123,
            validation_split=0.1,
            subset="validation",
        )
        by_keras = sorted(Path(path).relative_to(folder).as_posix() for path in dataset.file_paths)
    return {
        "keras-tail": by_keras,
        "train_test_split": sorted(train_test_split(labelled_files(), test_size=0.25, random_state=21)[1]),
    }
