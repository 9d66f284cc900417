"""Normalisation layers in NumPy, forward and backward: across channels, within maps, over the batch."""

import numpy as np

from alexnet.scratch.layers import Layer
from alexnet.scratch.windows import Array, check_floats, nonnegative, whole


class LocalResponseNormalization(Layer):
    """Local response normalisation: a channel with large values suppresses its neighbours.

    b[c] = a[c] / (k + alpha * sum over |d - c| <= R // 2 of a[d] ** 2) ** beta                      (paper, section 3.3)

    `depth_radius` R is the number of channels of the whole window (5 in the paper), and `alpha` is not divided by it. The
    window is clipped at the first and last channel of its group. It improved the paper's top-1 error by 1.4 %.
    """

    def __init__(
        self, depth_radius: int = 5, bias: float = 1.0, alpha: float = 1e-4, beta: float = 0.75, groups: int = 1
    ) -> None:
        super().__init__()
        self.reach, self.groups = whole("the window", depth_radius) // 2, whole("groups", groups)
        self.bias, self.alpha, self.beta = nonnegative("bias", bias), nonnegative("alpha", alpha), nonnegative("beta", beta)

    def forward(self, x: Array, training: bool = False) -> Array:
        """N H W C or H W C; keeps the shape."""
        self._images(x)
        if x.shape[-1] % self.groups:
            raise ValueError(f"LocalResponseNormalization: {x.shape[-1]} channels are not divisible by {self.groups} groups")
        scale = self.bias + self.alpha * self._sum(x * x)
        return self._save(x * scale**-self.beta, x, scale)

    def backward(self, gradient: Array) -> Array:
        """Add the gradient through a value's own output and through the scale of all windows that contain it."""
        x, scale = self._load(gradient)
        shared = self._sum(gradient * x * scale ** (-self.beta - 1))
        return gradient * scale**-self.beta - 2 * self.alpha * self.beta * x * shared

    def _sum(self, values: Array) -> Array:
        grouped = values.reshape(*values.shape[:-1], self.groups, -1)
        return _moving_sum(grouped, self.reach, -1).reshape(values.shape)


class MapNormalization(LocalResponseNormalization):
    """Local response normalisation over size x size pixels of the same map (`type=rnorm` in the 2012 source)."""

    def __init__(self, size: int = 5, bias: float = 1.0, alpha: float = 0.001 / 25, beta: float = 0.75) -> None:
        super().__init__(size, bias, alpha, beta)

    def _sum(self, values: Array) -> Array:
        return _moving_sum(_moving_sum(values, self.reach, -3), self.reach, -2)


class BatchNormalization(Layer):
    """Batch normalisation: scale each channel to mean 0 and variance 1 over the batch, then by a learned scale and shift.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta                               (Ioffe, Szegedy 2015; tutorials)

    Training uses the mean and variance of the batch and updates their moving averages, which are used otherwise. The constants
    are Keras' defaults.
    """

    def __init__(self, epsilon: float = 1e-3, momentum: float = 0.99) -> None:
        super().__init__()
        self.epsilon, self.momentum = nonnegative("epsilon", epsilon), nonnegative("momentum", momentum, below=1)
        self.moving: dict[str, Array] = {}  # mean and variance, for use after training

    def forward(self, x: Array, training: bool = False) -> Array:
        """N H W C or N units; keeps the shape."""
        check_floats("BatchNormalization", x)
        if x.ndim not in (2, 4):
            raise ValueError(f"BatchNormalization takes N x H x W x C or N x units, not {' x '.join(map(str, x.shape))}")
        channels, axes = x.shape[-1], tuple(range(x.ndim - 1))
        if not self.parameters:
            self.parameters = {"gamma": np.ones(channels, x.dtype), "beta": np.zeros(channels, x.dtype)}
            self.moving = {"mean": np.zeros(channels, x.dtype), "variance": np.ones(channels, x.dtype)}
        elif channels != (expected := len(self.parameters["gamma"])):
            raise ValueError(f"BatchNormalization has parameters for {expected} channels, but x has {channels}")
        mean, variance = (x.mean(axes), x.var(axes)) if training else (self.moving["mean"], self.moving["variance"])
        if training:
            for name, value in (("mean", mean), ("variance", variance)):
                self.moving[name] = self.momentum * self.moving[name] + (1 - self.momentum) * value
        inverse = 1 / np.sqrt(variance + self.epsilon)
        normal = (x - mean) * inverse
        return self._save(self.parameters["gamma"] * normal + self.parameters["beta"], normal, inverse, training)

    def backward(self, gradient: Array) -> Array:
        """In training, include the gradient through the mean and variance of the batch."""
        normal, inverse, training = self._load(gradient)
        axes = tuple(range(gradient.ndim - 1))
        self.gradients = {"gamma": (gradient * normal).sum(axes), "beta": gradient.sum(axes)}
        scaled = self.parameters["gamma"] * inverse
        if not training:
            return gradient * scaled
        count = gradient.size // gradient.shape[-1]
        return scaled * (gradient - (self.gradients["beta"] + normal * self.gradients["gamma"]) / count)


def _moving_sum(values: Array, reach: int, axis: int) -> Array:
    """Return for each value the sum of itself and up to `reach` neighbours on both sides."""
    moved = np.moveaxis(values, axis, -1)
    total = moved.copy()
    for distance in range(1, min(reach, moved.shape[-1] - 1) + 1):
        total[..., distance:] += moved[..., :-distance]
        total[..., :-distance] += moved[..., distance:]
    return np.moveaxis(total, -1, axis)
