"""How Keras steps, when it lowers the rate, and when it stops."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from proof.inputs import OPTIMIZERS, PATIENCE, PLATEAUS, RATE, RATES, draw_gradients, loss_series


def steps() -> NDArray[np.float64]:
    """Return the vector after each step of each of `OPTIMIZERS`: optimizers x steps x 8."""
    keras.config.set_floatx("float64")
    start, gradients = draw_gradients()
    found = []
    for settings in OPTIMIZERS:
        vector, optimizer = keras.Variable(start, dtype="float64"), keras.optimizers.SGD(RATES[0], **settings)
        taken = []
        for rate, gradient in zip(RATES, gradients, strict=True):
            optimizer.learning_rate = rate
            optimizer.apply([keras.ops.convert_to_tensor(gradient, dtype="float64")], [vector])
            taken.append(vector.numpy().copy())
        found.append(taken)
    return np.array(found)


def decisions() -> dict[str, Any]:
    """Return for each of `loss_series` when each plateau lowers the rate, and when training stops.

    Epochs count from 1; 0: not before the end. The rates follow from the epochs at which they fall, which is checked here.
    """
    keras.config.set_floatx("float32")  # which is also how closely the callbacks compare losses
    network = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    network.compile(loss="mse", optimizer=keras.optimizers.SGD(RATE))
    series = loss_series()
    return {
        "plateaus": [[_lowered(network, settings, losses) for losses in series] for settings in PLATEAUS],
        "stops": [_stopped(network, losses) for losses in series],
    }


def _lowered(network: keras.Model, settings: dict[str, Any], losses: list[float]) -> list[int]:
    """Return the epochs after which the rate is lower than before."""
    callback = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", **settings)
    callback.set_model(network)
    network.optimizer.learning_rate = RATE
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
    callback = keras.callbacks.EarlyStopping(monitor="loss", patience=PATIENCE)
    callback.set_model(network)
    network.stop_training = False
    callback.on_train_begin()
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"loss": loss})
        if network.stop_training:
            return epoch + 1
    return 0
