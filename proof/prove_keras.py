"""Compute the reference results in real Keras, for `make prove`; runs in `.venv-keras`, without the package `alexnet`.

    python -m proof.prove_keras reference FOLDER       write the golden files: about 70 s and 5 GB on 2 cores
    python -m proof.prove_keras trained REAL FOLDER    train for a few steps on real images, and predict 100 photos

`reference` writes `<network>.npz` for each network, `steps.npz`, `images.npz` and `decisions.json`, which the tests compare
with our results. `trained` takes the tests' folder of real images (`ALEXNET_TEST_DATA`) and writes, for each tutorial,
`<name>.keras` and `<name>.npz`: 100 photos as decoded pixels, and Keras' probabilities for them.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Set these before TensorFlow is loaded. oneDNN's float32 kernels depend on the processor, and may sum in another order and
    # precision; without them TensorFlow uses Eigen's, in plain float32 and float64. No GPU, as its convolutions may round to
    # TF32.
    os.environ |= {"TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.src.legacy.preprocessing.image import ImageDataGenerator, apply_affine_transform
from numpy.typing import NDArray
from PIL import Image
from proof import inputs
from proof.inputs import QUESTIONS, Pixels, Question, places
from sklearn.model_selection import train_test_split

Arrays = dict[str, NDArray[Any]]

# Networks -----------------------------------------------------------------------------------------------------------------

# Loss and optimizer as the tutorials compile them.
SETTINGS: dict[str, tuple[str, dict[str, float]]] = {
    "annotated": ("categorical_crossentropy", {"learning_rate": 0.01, "weight_decay": 0.0005}),
    "cats-dogs": ("binary_crossentropy", {"learning_rate": 0.001}),
    "cifar10-1x1": ("sparse_categorical_crossentropy", {"learning_rate": 0.001}),
    "cifar10": ("sparse_categorical_crossentropy", {"learning_rate": 0.001}),
}


def _conv(channels: int, kernel: int, after: tuple[Callable[[], layers.Layer], ...], **more: Any) -> list[layers.Layer]:
    settings = {"padding": "same", "activation": "relu", **more}
    return [layers.Conv2D(channels, kernel, **settings), *(make() for make in after)]


def build(question: Question, dropout: float = 0.0) -> keras.Sequential:
    """Return the tutorial's network, compiled; the proofs set dropout (0.5) to 0, as random draws differ between libraries."""
    norm, pool = layers.BatchNormalization, partial(layers.MaxPooling2D, 3, strides=2)
    small = 1 if question.name == "cifar10-1x1" else 3
    after: tuple[tuple[Callable[[], layers.Layer], ...], ...] = ((norm, pool), (norm, pool), (norm,), (norm,), (norm, pool))
    if question.name == "cats-dogs":
        after = ((pool,), (pool, norm), (), (), (pool,))
    network = keras.Sequential(
        [
            layers.Input((question.size, question.size, 3)),
            *_conv(96, 11, after[0], strides=4, padding="valid"),
            *_conv(256, 5, after[1]),
            *_conv(384, 3, after[2]),
            *_conv(384, small, after[3]),
            *_conv(256, small, after[4]),
            layers.Flatten(),
            layers.Dense(4096, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(4096, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(question.classes, activation="softmax"),
        ]
    )
    loss, optimizer = SETTINGS[question.name]
    network.compile(loss=loss, optimizer=keras.optimizers.SGD(**optimizer))
    return network


def named_weights(network: keras.Sequential) -> Iterator[tuple[str, keras.Variable]]:
    """Yield the weights in order as `conv1.kernel`, `norm1.gamma` ...: numbers count convolutions and dense layers."""
    number = 0
    for layer in network.layers:
        kind = {layers.Conv2D: "conv", layers.Dense: "fc", layers.BatchNormalization: "norm"}.get(type(layer))
        number += kind in ("conv", "fc")
        for weight in layer.weights:
            yield f"{kind}{number}.{weight.name}", weight


def _begin(dtype: str) -> None:
    """Clear the previous network, and compute in `dtype`."""
    keras.backend.clear_session()
    gc.collect()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def answers(question: Question, dtype: str) -> Arrays:
    """Return the network's outputs, losses and trained weights, computed in `dtype`, which the arrays' names begin with.

    These are `probabilities` and `logits` in inference (N x classes), `losses` of the training steps, and for every weight and
    moving statistic after step 1, and in float64 after the last step too: its root mean square, that of its change since the
    start, and the sampled values.
    """
    _begin(dtype)
    network = build(question)
    variables = dict(named_weights(network))
    for name, values in inputs.draw_weights((name, tuple(v.shape)) for name, v in variables.items()):
        variables[name].assign(values.astype(dtype))
    start = {name: v.numpy() for name, v in variables.items()}
    images, targets = inputs.draw_batch(question)
    wanted = targets if SETTINGS[question.name][0].startswith("sparse") else np.eye(question.classes)[targets]

    found: Arrays = {f"{dtype}/probabilities": np.asarray(network.predict_on_batch(images.astype(dtype)))}
    hidden = keras.Model(network.inputs, network.layers[-2].output).predict_on_batch(images.astype(dtype))
    found[f"{dtype}/logits"] = hidden @ start["fc8.kernel"] + start["fc8.bias"]
    losses = []
    for step in range(1, (inputs.STEPS if dtype == "float64" else 1) + 1):
        network.reset_metrics()  # otherwise, the mean over all steps so far is returned
        losses.append(network.train_on_batch(images.astype(dtype), wanted))
        if step in (1, inputs.STEPS):
            for name, variable in variables.items():
                found[f"{dtype}/step{step}/{name}"] = _summary(name, variable.numpy(), start[name])
    found[f"{dtype}/losses"] = np.array(losses, dtype=dtype)
    return found


def _summary(name: str, after: NDArray[Any], before: NDArray[Any]) -> NDArray[np.float64]:
    """Return the root mean square (norm / sqrt(count)) of the tensor and of its change, then the values at `places`."""
    sizes = [np.linalg.norm(values.reshape(-1).astype(np.float64)) / np.sqrt(after.size) for values in (after, after - before)]
    return np.array([*sizes, *after.reshape(-1)[places(name, after.size)]], dtype=np.float64)


def first_weights(question: Question) -> Arrays:
    """Return the minimum, maximum, mean and deviation of each kernel of a new network in float32, and 1,000 samples."""
    _begin("float32")
    keras.utils.set_random_seed(inputs.SEED + QUESTIONS.index(question))
    found: Arrays = {}
    for name, variable in named_weights(build(question)):
        values = variable.numpy().reshape(-1)
        if name.endswith("kernel"):
            moments = [values.min(), values.max(), values.mean(dtype=np.float64), values.std(dtype=np.float64)]
            found[f"first/{name}"] = np.array([*moments, *values[places(name, values.size, 1000)]], dtype=np.float32)
        else:  # all the same value
            found[f"first/{name}"] = np.array([values.min(), values.max()], dtype=np.float32)
    return found


# Images -------------------------------------------------------------------------------------------------------------------

VALUES = 400  # kept of each image


def annotated_input(photo: Pixels) -> NDArray[np.float32]:
    """Tutorial 000: the file is resized as it is read, the mean is subtracted, and the image is flipped horizontally."""
    resized = tf.image.resize(photo, (224, 224), method="bilinear")
    return tf.image.flip_left_right(resized - inputs.MEAN).numpy()


def cats_dogs_input(photo: Pixels) -> NDArray[np.float32]:
    """Tutorial 001: `flow_from_dataframe` reads with `load_img`, with nearest interpolation by default; then / 255."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, format="PNG")
    file.seek(0)
    image = keras.utils.load_img(file, target_size=(227, 227), interpolation="nearest")
    return keras.utils.img_to_array(image) * np.float32(1.0 / 255)


def cifar10_input(image: Pixels) -> NDArray[np.float32]:
    """Tutorials 002 and 003: each image is standardised, then enlarged."""
    return tf.image.resize(tf.image.per_image_standardization(image), (227, 227)).numpy()


def network_inputs() -> Arrays:
    """Return for each recipe and image the norm of the network's input, and its values (H W 3) at `places`."""
    found: Arrays = {}
    photos, small = inputs.photos(), inputs.small_images()
    for recipe, images, make in (
        ("annotated", photos, annotated_input),
        ("cats-dogs", photos, cats_dogs_input),
        ("cifar10", small, cifar10_input),
    ):
        for name, image in images.items():
            made = make(image)
            values = made.reshape(-1)[places(name, made.size, VALUES)]
            found[f"{recipe}/{name}"] = np.array([np.linalg.norm(made.astype(np.float64)), *values], dtype=np.float64)
    found["photos"] = np.frombuffer(bytes.fromhex(inputs.digest(photos | small)), np.uint8)
    return found


def affine() -> Arrays:
    """Return for each map the mean of the transformed 227 x 227 x 3 float32 photo, and its values at `places`."""
    photo = inputs.photos()["square"].astype(np.float32)
    found = []
    for number, parameters in enumerate(inputs.affine_maps(photo.shape[0])):
        made = apply_affine_transform(
            photo, *parameters[:6], row_axis=0, col_axis=1, channel_axis=2, fill_mode="nearest", order=1
        )
        # As ImageDataGenerator.apply_transform does afterwards.
        made = made[:, ::-1] if parameters.flip_horizontal else made
        made = made[::-1] if parameters.flip_vertical else made
        found.append([made.mean(dtype=np.float64), *made.reshape(-1)[places(f"map {number}", made.size, VALUES)]])
    return {"maps": np.array(found, dtype=np.float32)}


def held_out() -> dict[str, list[str]]:
    """Return the sorted names of the validation split: a tenth of 513 by Keras, a quarter of 1,000 by scikit-learn."""
    with tempfile.TemporaryDirectory() as folder:
        image = tf.io.encode_png(tf.zeros((1, 1, 3), tf.uint8)).numpy()
        for name in inputs.class_files():
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
        "train_test_split": sorted(train_test_split(inputs.labelled_files(), test_size=0.25, random_state=21)[1]),
    }


# Optimizer and callbacks --------------------------------------------------------------------------------------------------


def optimizer_steps() -> NDArray[np.float64]:
    """Return the vector after each step of each of `OPTIMIZERS`: optimizers x steps x 8."""
    keras.config.set_floatx("float64")
    start, gradients = inputs.draw_gradients()
    found = []
    for settings in inputs.OPTIMIZERS:
        vector, optimizer = keras.Variable(start, dtype="float64"), keras.optimizers.SGD(inputs.RATES[0], **settings)
        taken = []
        for rate, gradient in zip(inputs.RATES, gradients, strict=True):
            optimizer.learning_rate = rate
            optimizer.apply([keras.ops.convert_to_tensor(gradient, dtype="float64")], [vector])
            taken.append(vector.numpy().copy())
        found.append(taken)
    return np.array(found)


def decisions() -> dict[str, Any]:
    """Return for each of `loss_series` when each plateau lowers the rate, and when training stops.

    Epochs count from 1; 0 means not before the end. The rates follow from the epochs at which they fall, which is checked here.
    """
    keras.config.set_floatx("float32")  # which is also how closely the callbacks compare losses
    network = keras.Sequential([layers.Input((1,)), layers.Dense(1)])
    network.compile(loss="mse", optimizer=keras.optimizers.SGD(inputs.RATE))
    series = inputs.loss_series()
    return {
        "plateaus": [[_lowered(network, settings, losses) for losses in series] for settings in inputs.PLATEAUS],
        "stops": [_stopped(network, losses) for losses in series],
    }


def _lowered(network: keras.Model, settings: dict[str, Any], losses: list[float]) -> list[int]:
    """Return the epochs after which the rate is lower than before."""
    callback = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", **settings)
    callback.set_model(network)
    network.optimizer.learning_rate = inputs.RATE
    callback.on_train_begin()
    rate, found = float(network.optimizer.learning_rate), []
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        new = float(network.optimizer.learning_rate)
        if new < rate * (1 - 1e-6):  # rates are float32, and so is the floor
            expected = max(rate * settings["factor"], settings["min_lr"])
            assert abs(new / expected - 1) < 1e-6, (new, expected)
            found.append(epoch + 1)
        rate = new
    return found


def _stopped(network: keras.Model, losses: list[float]) -> int:
    callback = keras.callbacks.EarlyStopping(monitor="loss", patience=inputs.PATIENCE)
    callback.set_model(network)
    network.stop_training = False
    callback.on_train_begin()
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"loss": loss})
        if network.stop_training:
            return epoch + 1
    return 0


# Training on real images ---------------------------------------------------------------------------------------------------

FIT_STEPS, PHOTOS = 4, 100


def decoded(paths: list[Path]) -> list[Pixels]:
    """Return the pixels of image files, H W 3."""
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def some(real: Path, pattern: str) -> list[Path]:
    """Return `PHOTOS` of the files that match, evenly spaced in the list."""
    paths = sorted(real.glob(pattern))
    return paths[:: len(paths) // PHOTOS][:PHOTOS]


def train_annotated(real: Path, network: keras.Model) -> tuple[list[Pixels], NDArray[np.float32]]:
    """Tutorial 000, on Imagenette: class folders, batches of 2. Return test photos, and the network's inputs for them."""
    train = keras.utils.image_dataset_from_directory(
        real / "imagenette" / "train", label_mode="categorical", batch_size=2, image_size=(224, 224), shuffle=True, seed=123
    )
    turned = train.take(FIT_STEPS).map(lambda x, y: (tf.image.flip_left_right(x - inputs.MEAN), y))
    network.fit(turned, verbose=0, shuffle=False)
    photos = decoded(some(real, "imagenette/val/*/*.JPEG"))
    return photos, np.stack([annotated_input(photo) for photo in photos])


def train_cats_dogs(real: Path, network: keras.Model) -> tuple[list[Pixels], NDArray[np.float32]]:
    """Tutorial 001, with Keras' augmentation in training; the training photos are also the test photos."""
    paths = some(real, "cats-dogs/train/*.jpg")
    photos = decoded(paths)
    taken = np.stack([cats_dogs_input(photo) for photo in photos])
    labels = np.eye(2)[[int(path.name.startswith("dog")) for path in paths]]
    changes = ImageDataGenerator(
        zoom_range=[0.8, 1.5],
        shear_range=0.2,
        horizontal_flip=True,
        vertical_flip=True,
        width_shift_range=0.3,
        height_shift_range=0.3,
        rotation_range=30,
    )
    network.fit(changes.flow(taken, labels, batch_size=32), steps_per_epoch=FIT_STEPS - 1, verbose=0)
    return photos, taken


def train_cifar10(real: Path, network: keras.Model) -> tuple[list[Pixels], NDArray[np.float32]]:
    """Tutorials 002 and 003."""
    paths = sorted(real.glob("cifar10/train/*/*.jpg"))[:: 50_000 // (32 * FIT_STEPS)][: 32 * FIT_STEPS]
    labels = np.array([sorted({p.parent.name for p in paths}).index(path.parent.name) for path in paths])
    network.fit(np.stack([cifar10_input(image) for image in decoded(paths)]), labels, batch_size=32, verbose=0)
    photos = decoded(some(real, "cifar10/test/*/*.jpg"))
    return photos, np.stack([cifar10_input(photo) for photo in photos])


TRAIN = {"annotated": train_annotated, "cats-dogs": train_cats_dogs, "cifar10-1x1": train_cifar10, "cifar10": train_cifar10}


# The command line ---------------------------------------------------------------------------------------------------------


def reference(folder: Path) -> None:
    """Write all golden files into `folder`, which is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    for question in QUESTIONS:
        arrays = {**answers(question, "float64"), **answers(question, "float32"), **first_weights(question)}
        np.savez_compressed(folder / f"{question.name}.npz", **arrays)
        print(f"{question.name}: {len(arrays)} arrays", flush=True)
    np.savez_compressed(folder / "steps.npz", **{"float64/steps": optimizer_steps()})
    np.savez_compressed(folder / "images.npz", **network_inputs(), **affine())
    document = {
        "made with": {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__},
        "held out": held_out(),
        **decisions(),
    }
    text = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in document.items())
    (folder / "decisions.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def trained(real: Path, folder: Path) -> None:
    """Train each tutorial's network, and write it with its probabilities for 100 photos."""
    folder.mkdir(parents=True, exist_ok=True)
    for question in QUESTIONS:
        keras.utils.set_random_seed(0)
        classes = 10 if question.name == "annotated" else question.classes  # Imagenette has ten
        network = build(question._replace(classes=classes), dropout=0.5)
        photos, taken = TRAIN[question.name](real, network)
        probabilities = network.predict(taken, batch_size=20, verbose=0)
        network.save(folder / f"{question.name}.keras")
        arrays = {f"photo{i:03}": photo for i, photo in enumerate(photos)}
        np.savez(folder / f"{question.name}.npz", probabilities=probabilities, **arrays)
        largest = f"largest probability {probabilities.max():.3f}"
        print(f"{question.name}: trained {FIT_STEPS} steps, {len(photos)} photos, {largest}", flush=True)


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    match sys.argv[1:]:
        case ["reference", target]:
            reference(Path(target))
        case ["trained", source, target]:
            trained(Path(source), Path(target))
        case _:
            sys.exit("usage: python -m proof.prove_keras reference FOLDER | trained REAL FOLDER")
