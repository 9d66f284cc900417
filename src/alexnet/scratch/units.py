"""Elementwise layers in NumPy, forward and backward; softmax and the loss."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alexnet.scratch.layers import Layer, Seed
from alexnet.scratch.windows import Array, check_choice, check_floats, nonnegative


class ReLU(Layer):
    """max(0, x). It does not saturate for large x.

    In the paper, a small network reaches 25 % training error six times as fast as with tanh (section 3.1). Here it does not:
    with Glorot's initial weights, tanh took 0.96 times as many steps (docs/claims.md).
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        """Any shape."""
        check_floats("ReLU", x)
        return self._save(np.maximum(x, 0), x > 0)

    def backward(self, gradient: Array) -> Array:
        """Pass the gradient where the input was positive."""
        (positive,) = self._load(gradient)
        return gradient * positive


class Tanh(Layer):
    """The hyperbolic tangent, the usual activation before ReLU. Near -1 and 1 it saturates: its slope 1 - y ** 2 goes to 0."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Any shape."""
        check_floats("Tanh", x)
        y = np.tanh(x)
        return self._save(y, y)

    def backward(self, gradient: Array) -> Array:
        """Multiply the gradient by the slope."""
        (y,) = self._load(gradient)
        return gradient * (1 - y * y)


class Dropout(Layer):
    """Dropout: in training, set each unit to 0 with probability `rate`, so that units do not co-adapt (paper, section 4.2).

    To keep the expected output, either divide by 1 - rate in training, as usual today, or multiply by 1 - rate in testing, as
    in 2012 (`scales="testing"`).
    """

    def __init__(self, rate: float = 0.5, scales: Literal["training", "testing"] = "training", seed: Seed = 0) -> None:
        super().__init__()
        check_choice("scales", scales, "training", "testing")
        self.rate, self.scales, self._rng = nonnegative("rate", rate, below=1), scales, np.random.default_rng(seed)

    def forward(self, x: Array, training: bool = False) -> Array:
        """Any shape."""
        check_floats("Dropout", x)
        scale_in_training = self.scales == "training"
        factor: Any = 1.0 if scale_in_training else 1 - self.rate
        if training:
            factor = (self._rng.random(x.shape) >= self.rate).astype(x.dtype)
            factor = factor / (1 - self.rate) if scale_in_training else factor
        return self._save((x * factor).astype(x.dtype), factor)

    def backward(self, gradient: Array) -> Array:
        """Pass the gradient through the units that were kept."""
        (factor,) = self._load(gradient)
        return (gradient * factor).astype(gradient.dtype)


class Softmax(Layer):
    """Softmax, from logits to probabilities: p[k] = exp(z[k]) / sum over j of exp(z[j]) (paper, section 3.5)."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """N classes; keeps the shape, and rows sum to 1."""
        check_floats("Softmax", x)
        exponentials = np.exp(x - x.max(-1, keepdims=True))  # subtracting the maximum avoids overflow
        y = exponentials / exponentials.sum(-1, keepdims=True)
        return self._save(y, y)

    def backward(self, gradient: Array) -> Array:
        """dL/dz[k] = p[k] * (g[k] - sum over j of g[j] p[j])."""
        (y,) = self._load(gradient)
        return y * (gradient - (gradient * y).sum(-1, keepdims=True))


def cross_entropy(logits: Array, targets: NDArray[np.int64]) -> tuple[float, Array]:
    """Return the mean of -log p[target] after a softmax, and its gradient by the logits, (p - one-hot) / N.

    The logarithm of the softmax is computed directly, as probabilities may underflow.

    Args:
        logits: N x classes.
        targets: N classes, counted from 0.
    """
    check_floats("cross_entropy", logits)
    if not isinstance(targets, np.ndarray) or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"targets are {targets!r}, but should be an array of integers")
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or not targets.size:
        raise ValueError(f"cross_entropy takes logits N x classes and N targets, not {logits.shape} and {targets.shape}")
    if not 0 <= targets.min() <= targets.max() < logits.shape[1]:
        raise ValueError(f"targets run from {targets.min()} to {targets.max()}, but there are {logits.shape[1]} classes")
    rows = np.arange(len(logits))
    shifted = logits - logits.max(1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    gradient = np.exp(logarithms)
    gradient[rows, targets] -= 1
    return -float(logarithms[rows, targets].mean()), gradient / len(logits)
