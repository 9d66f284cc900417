"""AlexNet as a list of layers, and its optimizer."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.scratch.layers import Conv2D, Dense, Flatten, Layer, MaxPooling2D
from alexnet.scratch.norms import BatchNormalization, LocalResponseNormalization, MapNormalization
from alexnet.scratch.units import Dropout, ReLU, Softmax, Tanh, cross_entropy
from alexnet.scratch.windows import Array, nonnegative

KINDS: dict[str, type[Layer]] = {
    kind.__name__: kind
    for kind in (
        *(Conv2D, MaxPooling2D, Dense, Flatten, ReLU, Tanh, Dropout, Softmax),
        *(LocalResponseNormalization, MapNormalization, BatchNormalization),
    )
}

Facts = Iterable[Mapping[str, Any]]  # for each layer its name in `KINDS`, under "layer", and its arguments


def block(filters: int, kernel_size: int, *more: str, stride: int = 1, padding: str = "same") -> list[dict[str, Any]]:
    """Return a convolution without bias, a ReLU, and optionally `norm` and `pool`."""
    after: dict[str, dict[str, Any]] = {
        "norm": {"layer": "LocalResponseNormalization"},
        "pool": {"layer": "MaxPooling2D", "pool_size": 3, "stride": 2},
    }
    conv = {"filters": filters, "kernel_size": kernel_size, "stride": stride, "padding": padding, "bias": False}
    return [{"layer": "Conv2D", **conv}, {"layer": "ReLU"}, *(after[name] for name in more)]


def hidden(units: int) -> list[dict[str, Any]]:
    """Return a dense layer, a ReLU and dropout."""
    return [{"layer": "Dense", "units": units}, {"layer": "ReLU"}, {"layer": "Dropout", "rate": 0.5}]


# The network that tutorial 000 builds in NumPy: 227x227x3 -> 55 -> 27 -> 13 -> 6 pixels per side -> 1000 classes.
SCRATCH: tuple[dict[str, Any], ...] = (
    *block(96, 11, "norm", "pool", stride=4, padding="valid"),
    *block(256, 5, "norm", "pool"),
    *block(384, 3),
    *block(384, 3),
    *block(256, 3, "pool"),
    {"layer": "Flatten"},
    *hidden(4096),
    *hidden(4096),
    {"layer": "Dense", "units": 1000},
)


class SGD:
    """Stochastic gradient descent with momentum and weight decay (paper, section 5).

    v = momentum * v - decay * rate * w - rate * dL/dw,   w = w + v
    """

    def __init__(self, rate: float = 0.01, momentum: float = 0.9, decay: float = 0.0) -> None:
        self.rate, self.decay = nonnegative("rate", rate), nonnegative("decay", decay)
        self.momentum = nonnegative("momentum", momentum, below=1)
        self._velocity: dict[tuple[int, str], Array] = {}

    def step(self, layers: Iterable[Layer]) -> None:
        """Update the parameters of layers with their gradients."""
        for number, layer in enumerate(layers):
            for name, gradient in layer.gradients.items():
                weight = layer.parameters[name]
                velocity = self._velocity.setdefault((number, name), np.zeros_like(weight))
                velocity *= self.momentum
                velocity -= self.rate * (gradient + self.decay * weight)
                weight += velocity


class AlexNet:
    """A sequence of layers that ends in logits.

    Args:
        facts: one mapping per layer, such as `{"layer": "Conv2D", "filters": 96, "kernel_size": 11, "stride": 4}`.
        seed: seed of the initial weights and of dropout.
    """

    def __init__(self, facts: Facts = SCRATCH, seed: int = 0) -> None:
        self.layers: list[Layer] = []
        for number, fact in enumerate(facts):
            settings = {key: value for key, value in fact.items() if key != "layer"}
            if fact.get("layer") not in KINDS:
                raise ValueError(f"no layer {fact.get('layer')!r}: it should be one of {', '.join(KINDS)}")
            if fact["layer"] in ("Conv2D", "Dense", "Dropout"):
                settings["seed"] = [seed, number]
            self.layers.append(KINDS[fact["layer"]](**settings))

    def forward(self, images: Array, training: bool = False) -> Array:
        """N H W C -> N classes: the logits."""
        x = images
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, gradient: Array) -> Array:
        """Backpropagate the gradient by the logits; fill the gradients of all layers, and return the one by the images."""
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient)
        return gradient

    def predict(self, images: Array) -> Array:
        """N H W C -> N classes: probabilities."""
        return Softmax().forward(self.forward(images))

    def learn(self, images: Array, targets: NDArray[np.int64], optimizer: SGD) -> float:
        """Take one training step on a batch, N H W C and N classes; return the loss before it."""
        loss, gradient = cross_entropy(self.forward(images, training=True), targets)
        self.backward(gradient)
        optimizer.step(self.layers)
        return loss

    def summary(self, shape: tuple[int, int, int] = (227, 227, 3)) -> list[tuple[str, tuple[int, ...], int]]:
        """Return each layer's name, output shape for one image H W C, and number of parameters."""
        x, rows = np.zeros((1, *shape), np.float32), list[tuple[str, tuple[int, ...], int]]()
        for layer in self.layers:
            x = layer.forward(x)
            rows.append((type(layer).__name__, x.shape[1:], sum(array.size for array in layer.parameters.values())))
        return rows
