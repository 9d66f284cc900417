"""Layers that act on each unit alone, forward and backward, in NumPy; softmax and the loss."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alexnet.scratch.layer import Array, Layer


class ReLU(Layer):
    """max(0, x): its slope is 1 however large x is, where tanh has gone flat; six times faster to learn (section 3.1)."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Any shape."""
        self._kept = (x > 0,)
        y: Array = np.maximum(x, 0)
        return y

    def backward(self, gradient: Array) -> Array:
        """Through where the input was above 0."""
        (above,) = self._recall()
        back: Array = gradient * above
        return back


class Tanh(Layer):
    """The hyperbolic tangent, what was usual before: it saturates at -1 and 1, and its slope 1 - y ** 2 goes to 0."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Any shape."""
        y: Array = np.tanh(x)
        self._kept = (y,)
        return y

    def backward(self, gradient: Array) -> Array:
        """Times the slope."""
        (y,) = self._recall()
        back: Array = gradient * (1 - y * y)
        return back


class Dropout(Layer):
    """In training each unit is left out with probability `rate`, so that none can lean on another (paper, section 4.2).

    Afterwards all units are there, and the outputs would be too large: either they are multiplied by 1 - rate then, as in 2012
    (`scales="testing"`), or divided by it in training, as all do today. Both are the same on average.
    """

    def __init__(
        self, rate: float = 0.5, scales: Literal["training", "testing"] = "training", seed: int | list[int] = 0
    ) -> None:
        super().__init__()
        self.rate, self.scales, self._chance = rate, scales, np.random.default_rng(seed)

    def forward(self, x: Array, training: bool = False) -> Array:
        """Any shape."""
        today = self.scales == "training"
        factor: Any = 1.0 if today else 1 - self.rate
        if training:
            factor = (self._chance.random(x.shape) >= self.rate).astype(x.dtype)
            factor = factor / (1 - self.rate) if today else factor
        self._kept = (factor,)
        y: Array = (x * factor).astype(x.dtype)
        return y

    def backward(self, gradient: Array) -> Array:
        """Through the units that were there."""
        (factor,) = self._recall()
        back: Array = (gradient * factor).astype(gradient.dtype)
        return back


class Softmax(Layer):
    """Scores to probabilities: p[k] = exp(z[k]) / sum over j of exp(z[j]) (paper, section 3.5)."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """N classes; the same shape out, rows that sum to 1."""
        raised = np.exp(x - x.max(-1, keepdims=True))  # the same, and nothing overflows
        y: Array = raised / raised.sum(-1, keepdims=True)
        self._kept = (y,)
        return y

    def backward(self, gradient: Array) -> Array:
        """dL/dz[k] = p[k] * (g[k] - sum over j of g[j] p[j])."""
        (y,) = self._recall()
        back: Array = y * (gradient - (gradient * y).sum(-1, keepdims=True))
        return back


def cross_entropy(logits: Array, targets: NDArray[np.int64]) -> tuple[float, Array]:
    """Return the mean of -log p[target] after a softmax, and its gradient by the logits: (p - one-hot) / N.

    Softmax and logarithm together: a probability may be too small for a float, its logarithm is not.

    Args:
        logits: N x classes.
        targets: N, from 0 on.

    Raises:
        ValueError: shapes that do not fit, or a target that is no class.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"cross_entropy takes logits N x classes and N targets, not {logits.shape} and {targets.shape}")
    if targets.size and not 0 <= targets.min() <= targets.max() < logits.shape[1]:
        raise ValueError(f"targets run from {targets.min()} to {targets.max()}, but there are {logits.shape[1]} classes")
    rows = np.arange(len(logits))
    shifted = logits - logits.max(1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    gradient = np.exp(logarithms)
    gradient[rows, targets] -= 1
    return -float(logarithms[rows, targets].mean()), gradient / len(logits)
