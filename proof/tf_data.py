"""An input pipeline in tf.data, doing what `benchmarks/loader.py` asks for: a pass for each line on standard input.

    python -m proof.tf_data SETTINGS

SETTINGS is JSON: `source`, an .npy file of N S S 3 uint8 images or a text file of JPEG files' paths, and `batch`, `side`,
`shift`, `mirror`, `input`, `mean`, `deviation`, `threads`. Prints a line when it is ready, then the seconds of each pass.
Images become shuffled batches, shifted, mirrored, normalised and resized; JPEG files become `side` x `side` x 3 uint8.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}

import numpy as np
import tensorflow as tf


def cached(images: Any, how: dict[str, Any]) -> tf.data.Dataset:
    """Return the batches of decoded images, float32, as the network takes them."""
    side, reach = images.shape[1], how["shift"]
    mean, deviation = (tf.constant(how[name], tf.float32) * 255 for name in ("mean", "std"))

    def move(image: tf.Tensor) -> tf.Tensor:
        image = tf.pad(image, [[reach, reach], [reach, reach], [0, 0]], "REFLECT")
        image = tf.image.random_crop(image, (side, side, 3))
        return tf.image.random_flip_left_right(image) if how["horizontal_flip"] else image

    def finish(batch: tf.Tensor) -> tf.Tensor:
        batch = (tf.cast(batch, tf.float32) - mean) / deviation
        return batch if side == how["input"] else tf.image.resize(batch, (how["input"], how["input"]), antialias=True)

    moved = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images)).map(move, tf.data.AUTOTUNE)
    return moved.batch(how["batch"]).map(finish, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def decoded(files: list[str], how: dict[str, Any]) -> tf.data.Dataset:
    """Return the images of JPEG files: the middle, `side` pixels a side, in batches."""
    size = (how["side"], how["side"])

    def decode(file: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(tf.io.read_file(file), 3)
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        edge = tf.minimum(height, width)
        image = tf.image.crop_to_bounding_box(image, (height - edge) // 2, (width - edge) // 2, edge, edge)
        return tf.cast(tf.clip_by_value(tf.round(tf.image.resize(image, size, "bicubic", antialias=True)), 0, 255), tf.uint8)

    return tf.data.Dataset.from_tensor_slices(files).map(decode, tf.data.AUTOTUNE).batch(how["batch"]).prefetch(1)


if __name__ == "__main__":
    how = json.loads(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(how["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(how["threads"])
    source = Path(how["source"])
    batches = cached(np.load(source), how) if source.suffix == ".npy" else decoded(source.read_text().splitlines(), how)
    options = tf.data.Options()
    options.threading.private_threadpool_size = how["threads"]
    batches = batches.with_options(options)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _batch in batches:
            pass
        print(time.perf_counter() - start, flush=True)
