"""The four networks of the tutorials in Keras: what they answer, what they lose, what their training steps change."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray
from proof.inputs import QUESTIONS, SEED, STEPS, Question, draw_batch, draw_weights, places

Arrays = dict[str, NDArray[Any]]

# Loss and optimizer as the tutorials compile them.
SETTINGS: dict[str, tuple[str, dict[str, float]]] = {
    "annotated": ("categorical_crossentropy", {"learning_rate": 0.01, "weight_decay": 0.0005}),
    "cats-dogs": ("binary_crossentropy", {"learning_rate": 0.001}),
    "cifar10-1x1": ("sparse_categorical_crossentropy", {"learning_rate": 0.001}),
    "cifar10": ("sparse_categorical_crossentropy", {"learning_rate": 0.001}),
}


def _conv(channels: int, kernel: int, *after: layers.Layer, strides: int = 1, padding: str = "same") -> list[layers.Layer]:
    return [layers.Conv2D(channels, kernel, strides=strides, padding=padding, activation="relu"), *after]


def _norm() -> layers.Layer:
    return layers.BatchNormalization()


def _pool() -> layers.Layer:
    return layers.MaxPooling2D(3, strides=2)


def build(question: Question, dropout: float = 0.0) -> keras.Sequential:
    """Return the tutorial's network, compiled; the proofs set dropout (0.5) to 0, as chance differs between libraries."""
    if question.name == "cats-dogs":
        maps = [
            *_conv(96, 11, _pool(), strides=4, padding="valid"),
            *_conv(256, 5, _pool(), _norm()),
            *_conv(384, 3),
            *_conv(384, 3),
            *_conv(256, 3, _pool()),
        ]
    else:
        small = 1 if question.name == "cifar10-1x1" else 3
        maps = [
            *_conv(96, 11, _norm(), _pool(), strides=4, padding="valid"),
            *_conv(256, 5, _norm(), _pool()),
            *_conv(384, 3, _norm()),
            *_conv(384, small, _norm()),
            *_conv(256, small, _norm(), _pool()),
        ]
    dense = [layer for _ in range(2) for layer in (layers.Dense(4096, activation="relu"), layers.Dropout(dropout))]
    network = keras.Sequential(
        [
            layers.Input((question.size, question.size, 3)),
            *maps,
            layers.Flatten(),
            *dense,
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
    """Forget the last network, and compute in `dtype`."""
    keras.backend.clear_session()
    gc.collect()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def answers(question: Question, dtype: str) -> Arrays:
    """Return what the network answers, loses and becomes, computed in `dtype`; the arrays' names begin with it.

    `probabilities` and `logits` in inference (N x classes), `losses` of the training steps, and for every weight and moving
    statistic after step 1, in float64 after the last step too: its root mean square, that of its change since the start, and
    the sampled values.
    """
    _begin(dtype)
    network = build(question)
    variables = dict(named_weights(network))
    for name, values in draw_weights((name, tuple(v.shape)) for name, v in variables.items()):
        variables[name].assign(values.astype(dtype))
    start = {name: v.numpy() for name, v in variables.items()}
    images, targets = draw_batch(question)
    wanted = targets if SETTINGS[question.name][0].startswith("sparse") else np.eye(question.classes)[targets]

    found: Arrays = {f"{dtype}/probabilities": np.asarray(network.predict_on_batch(images.astype(dtype)))}
    hidden = keras.Model(network.inputs, network.layers[-2].output).predict_on_batch(images.astype(dtype))
    found[f"{dtype}/logits"] = hidden @ start["fc8.kernel"] + start["fc8.bias"]
    losses = []
    for step in range(1, (STEPS if dtype == "float64" else 1) + 1):
        network.reset_metrics()  # what comes back is a mean over all steps otherwise
        losses.append(network.train_on_batch(images.astype(dtype), wanted))
        if step in (1, STEPS):
            for name, variable in variables.items():
                found[f"{dtype}/step{step}/{name}"] = _summary(name, variable.numpy(), start[name])
    found[f"{dtype}/losses"] = np.array(losses, dtype=dtype)
    return found


def _summary(name: str, after: NDArray[Any], before: NDArray[Any]) -> NDArray[np.float64]:
    """Return the root mean square (norm / sqrt(count)) of the tensor and of its change, then the values at `places`."""
    values = after.reshape(-1)[places(name, after.size)]
    return np.array([_typical(after), _typical(after - before), *values], dtype=np.float64)


def _typical(values: NDArray[Any]) -> float:
    return float(np.linalg.norm(values.reshape(-1).astype(np.float64)) / np.sqrt(values.size))


def first_weights(question: Question) -> Arrays:
    """Return for each kernel of a new network in float32 its least, greatest and mean value, deviation, and 1,000 samples."""
    _begin("float32")
    keras.utils.set_random_seed(SEED + QUESTIONS.index(question))
    found: Arrays = {}
    for name, variable in named_weights(build(question)):
        values = variable.numpy().reshape(-1)
        if name.endswith("kernel"):
            moments = [values.min(), values.max(), values.mean(dtype=np.float64), values.std(dtype=np.float64)]
            found[f"first/{name}"] = np.array([*moments, *values[places(name, values.size, 1000)]], dtype=np.float32)
        else:  # all the same value
            found[f"first/{name}"] = np.array([values.min(), values.max()], dtype=np.float32)
    return found
