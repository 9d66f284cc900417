"""The TensorFlow peers of `tutorial.py` and `loader.py`, in `.venv-keras`: one turn for each line on standard input.

    python -m benchmarks.tensorflow_peers step NETWORK BATCH POLICY    a training step of a tutorial's network in Keras
    python -m benchmarks.tensorflow_peers data SETTINGS                a pass of an input pipeline in tf.data

POLICY is Keras' dtype policy; the tutorial's is float32. SETTINGS is JSON: `source`, an .npy file of N S S 3 uint8 images or a
text file with the paths of JPEG files, and `batch`, `side`, `shift`, `horizontal_flip`, `input`, `mean`, `std`, `threads`.
Images become shuffled batches, shifted, mirrored, normalised and resized; JPEG files become `side` x `side` x 3 uint8.

Prints a line when it is ready, then the seconds of each turn.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}

import numpy as np
import tensorflow as tf


def step(name: str, batch: int, policy: str) -> Callable[[], object]:
    """Return a traced training step."""
    import keras
    from proof.inputs import QUESTIONS
    from proof.prove_keras import build

    keras.config.set_dtype_policy(policy)
    question = next(question for question in QUESTIONS if question.name == name)
    network = build(question, dropout=0.5)
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(batch, question.size, question.size, 3)), tf.float32)
    targets = tf.constant(rng.integers(0, question.classes, batch))

    def work() -> float:
        return float(network.train_on_batch(images, targets))

    work()
    return work


def data(settings: dict[str, Any]) -> Callable[[], object]:
    """Return a pass over all images."""
    threads, source = settings["threads"], Path(settings["source"])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    cached = source.suffix == ".npy"
    batches = from_memory(np.load(source), settings) if cached else from_files(source.read_text().splitlines(), settings)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    batches = batches.with_options(options)

    def work() -> None:
        for _ in batches:
            pass

    return work


def from_memory(images: Any, settings: dict[str, Any]) -> tf.data.Dataset:
    """Return batches of decoded images, float32, preprocessed for the network."""
    side, reach, size = images.shape[1], settings["shift"], settings["input"]
    mean, deviation = (tf.constant(settings[name], tf.float32) * 255 for name in ("mean", "std"))

    def move(image: tf.Tensor) -> tf.Tensor:
        image = tf.pad(image, [[reach, reach], [reach, reach], [0, 0]], "REFLECT")
        image = tf.image.random_crop(image, (side, side, 3))
        return tf.image.random_flip_left_right(image) if settings["horizontal_flip"] else image

    def finish(batch: tf.Tensor) -> tf.Tensor:
        batch = (tf.cast(batch, tf.float32) - mean) / deviation
        return batch if side == size else tf.image.resize(batch, (size, size), antialias=True)

    moved = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images)).map(move, tf.data.AUTOTUNE)
    return moved.batch(settings["batch"]).map(finish, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def from_files(files: list[str], settings: dict[str, Any]) -> tf.data.Dataset:
    """Return the images of JPEG files in batches: centre crops of `side` pixels per side."""
    size = (settings["side"], settings["side"])

    def decode(file: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(tf.io.read_file(file), 3)
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        edge = tf.minimum(height, width)
        image = tf.image.crop_to_bounding_box(image, (height - edge) // 2, (width - edge) // 2, edge, edge)
        return tf.cast(tf.clip_by_value(tf.round(tf.image.resize(image, size, "bicubic", antialias=True)), 0, 255), tf.uint8)

    return tf.data.Dataset.from_tensor_slices(files).map(decode, tf.data.AUTOTUNE).batch(settings["batch"]).prefetch(1)


if __name__ == "__main__":
    _, kind, first, *others = sys.argv
    work = data(json.loads(first)) if kind == "data" else step(first, int(others[0]), others[1])
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work()
        print(time.perf_counter() - start, flush=True)
