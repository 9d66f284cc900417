"""The main layers of AlexNet in NumPy, forward and backward: convolution, pooling, dense, flatten.

norms.py has the normalisation layers, units.py the elementwise layers and the loss.

Images are N H W C: number, height, width, channels. `forward` saves what `backward` needs; `backward` takes the gradient of
the loss by the layer's output, stores the gradients of its parameters in `gradients`, and returns the gradient by its input.
Padding is with zeros, before pooling too. "The paper" is Krizhevsky, Sutskever, Hinton 2012.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from alexnet.scratch.windows import (
    Array,
    Padding,
    Pair,
    check_choice,
    check_floats,
    check_padding,
    output_size,
    pad,
    pair,
    shifts,
    unpad,
    whole,
    windows,
)

Seed = int | list[int]


class Layer:
    """Base class of layers, with `parameters` and `gradients` by name; `forward` saves what `backward` needs."""

    def __init__(self) -> None:
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self._saved: tuple[Any, ...] | None = None
        self._output: tuple[int, ...] = ()

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the output for the input `x`."""
        raise NotImplementedError

    def backward(self, gradient: Array) -> Array:
        """Return the gradient of the loss by the last input, given the one by the last output."""
        raise NotImplementedError

    def _save(self, y: Array, *values: Any) -> Array:
        """Save what `backward` needs, and return the output `y`."""
        self._saved, self._output = values, y.shape
        return y

    def _load(self, gradient: Array) -> tuple[Any, ...]:
        if self._saved is None:
            raise ValueError(f"{type(self).__name__}: call forward before backward")
        if gradient.shape != self._output:
            raise ValueError(f"{type(self).__name__}: the gradient is {gradient.shape}, but the output was {self._output}")
        return self._saved

    def _images(self, x: Array) -> Array:
        """Check type and rank, and turn one image H W C into a batch of one."""
        check_floats(type(self).__name__, x)
        if x.ndim not in (3, 4):
            shape = " x ".join(map(str, x.shape))
            raise ValueError(f"{type(self).__name__} takes images N x H x W x C, or one H x W x C, not {shape}")
        return x[None] if x.ndim == 3 else x


class Conv2D(Layer):
    """Convolution: every kernel slides over the image; its weights are multiplied with the pixels below it and summed.

    y[n, i, j, f] = b[f] + sum over u, v, c of w[u, v, c, f] * x[n, i * S + u, j * S + v, c]          (paper, section 3.5)

    With a kernel of K pixels, stride S and P zeros on each side, W pixels become (W + 2P - K) / S + 1. An image takes one
    matrix product: a matrix with a row for the window at each position, times one with a column for each kernel. With `groups`,
    each group of kernels reads its own group of channels (the paper's two GPUs). Kernels are initialized from
    N(0, sqrt(2 / fan_in)), biases with 0; `weight` is K K C/groups F.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: Padding = "valid",
        groups: int = 1,
        bias: bool = True,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.filters, self.groups = whole("filters", filters), whole("groups", groups)
        self.kernel, self.stride = pair("kernel_size", kernel_size), pair("stride", stride)
        self.padding, self.bias, self.seed = check_padding(padding), bias, seed

    def forward(self, x: Array, training: bool = False) -> Array:
        """N H W C -> N H' W' F; one image H W C -> H' W' F."""
        images = self._images(x)
        channels = images.shape[3]
        if channels % self.groups or self.filters % self.groups:
            count = f"{channels} channels and {self.filters} filters"
            raise ValueError(f"Conv2D: {count} are not divisible by {self.groups} groups")
        if not self.parameters:
            height, width = self.kernel
            self.parameters["weight"] = _he((height, width, channels // self.groups, self.filters), self.seed, x.dtype)
            if self.bias:
                self.parameters["bias"] = np.zeros(self.filters, x.dtype)
        elif channels != (expected := self.parameters["weight"].shape[2] * self.groups):
            raise ValueError(f"Conv2D has weights for {expected} channels, but x has {channels}")
        padded = pad(images, self.padding, self.kernel)
        size = output_size(padded, self.kernel, self.stride, "Conv2D")
        y = np.empty((len(padded), *size, self.filters), x.dtype)
        for part, columns in self._parts():
            weight = self.parameters["weight"][..., columns].reshape(-1, self.filters // self.groups)
            for rows, patches in windows(padded[..., part], self.kernel, self.stride):
                y[rows, ..., columns] = (patches @ weight).reshape(-1, *size, weight.shape[1])
        if self.bias:
            y += self.parameters["bias"]
        return self._save(y[0] if x.ndim == 3 else y, padded, images.shape, x.ndim)

    def backward(self, gradient: Array) -> Array:
        """Sum each weight's gradient over all positions, and each pixel's over all windows that contain it."""
        padded, shape, rank = self._load(gradient)
        gradient = gradient[None] if rank == 3 else gradient
        weight = self.parameters["weight"]
        self.gradients["weight"] = np.zeros_like(weight)
        if self.bias:
            self.gradients["bias"] = gradient.sum((0, 1, 2))
        back = np.zeros_like(padded)
        for part, columns in self._parts():
            flat = weight[..., columns].reshape(-1, self.filters // self.groups)
            for rows, patches in windows(padded[..., part], self.kernel, self.stride):
                by_output = gradient[rows, ..., columns].reshape(len(patches), -1)
                self.gradients["weight"][..., columns] += (patches.T @ by_output).reshape(weight[..., columns].shape)
                by_patch = (by_output @ flat.T).reshape(-1, *gradient.shape[1:3], *self.kernel, weight.shape[2])
                for u, v, pixels in shifts(self.kernel, self.stride, gradient.shape):
                    back[(rows, *pixels, part)] += by_patch[:, :, :, u, v]
        x = unpad(back, self.padding, self.kernel, shape)
        return x[0] if rank == 3 else x

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Yield the channels and the filters of each group."""
        channels, filters = self.parameters["weight"].shape[2], self.filters // self.groups
        for group in range(self.groups):
            yield slice(group * channels, (group + 1) * channels), slice(group * filters, (group + 1) * filters)


class MaxPooling2D(Layer):
    """Max pooling: the largest value of each window, for each channel.

    y[n, i, j, c] = max over u, v of x[n, i * S + u, j * S + v, c]

    The default stride is the window size. With a smaller stride, windows overlap: the paper's 3 and 2 improved top-1 by 0.4 %
    (section 3.4). The gradient goes to the largest pixel of each window, or the first of several.
    """

    def __init__(self, pool_size: int | Pair = 2, stride: int | Pair | None = None, padding: Padding = "valid") -> None:
        super().__init__()
        self.kernel, self.padding = pair("pool_size", pool_size), check_padding(padding)
        self.stride = self.kernel if stride is None else pair("stride", stride)

    def forward(self, x: Array, training: bool = False) -> Array:
        """N H W C -> N H' W' C; one image H W C -> H' W' C."""
        images = self._images(x)
        padded = pad(images, self.padding, self.kernel)
        size = output_size(padded, self.kernel, self.stride, "MaxPooling2D")
        shape = (len(padded), *size, padded.shape[3])
        y = np.full(shape, -np.inf, x.dtype)
        argmax = np.zeros(shape, np.int32)  # position in the window, row by row
        for u, v, pixels in shifts(self.kernel, self.stride, shape):
            values = padded[(slice(None), *pixels)]
            larger = values > y
            np.copyto(y, values, where=larger)
            argmax[larger] = u * self.kernel[1] + v
        return self._save(y[0] if x.ndim == 3 else y, argmax, padded.shape, images.shape, x.ndim)

    def backward(self, gradient: Array) -> Array:
        """Pass the gradient to the largest pixel of each window."""
        argmax, padded, shape, rank = self._load(gradient)
        gradient = gradient[None] if rank == 3 else gradient
        back = np.zeros(padded, gradient.dtype)
        for u, v, pixels in shifts(self.kernel, self.stride, argmax.shape):
            back[(slice(None), *pixels)] += np.where(argmax == u * self.kernel[1] + v, gradient, 0)
        x = unpad(back, self.padding, self.kernel, shape)
        return x[0] if rank == 3 else x


class Dense(Layer):
    """Dense layer: y = x w + b. `weight` is inputs x units, initialized like a convolution's.

    `Dense(4096)` takes the number of inputs from the first batch; `Dense(in_features=9216, out_features=4096)`, as in
    tutorial 000, states it.
    """

    def __init__(
        self, units: int | None = None, *, in_features: int | None = None, out_features: int | None = None, seed: Seed = 0
    ) -> None:
        super().__init__()
        given = [number for number in (units, out_features) if number is not None]
        if len(given) != 1:
            raise ValueError("Dense takes one number of units: Dense(4096) or Dense(in_features=9216, out_features=4096)")
        self.units, self.seed = whole("the number of units", given[0]), seed
        self.inputs = None if in_features is None else whole("in_features", in_features)

    def forward(self, x: Array, training: bool = False) -> Array:
        """N inputs -> N units; one vector counts as a batch of one."""
        check_floats("Dense", x)
        if x.ndim not in (1, 2):
            raise ValueError(f"Dense takes vectors N x inputs, not {' x '.join(map(str, x.shape))}: put Flatten before it")
        vectors = np.atleast_2d(x)
        self.inputs = self.inputs or vectors.shape[1]
        if vectors.shape[1] != self.inputs:
            raise ValueError(f"Dense has {self.inputs} inputs, but x has {vectors.shape[1]} values a row")
        if not self.parameters:
            weight = _he((self.inputs, self.units), self.seed, x.dtype)
            self.parameters = {"weight": weight, "bias": np.zeros(self.units, x.dtype)}
        return self._save(vectors @ self.parameters["weight"] + self.parameters["bias"], vectors, x.shape)

    def backward(self, gradient: Array) -> Array:
        """dL/dw = x' g, dL/db = sum of g, dL/dx = g w'."""
        vectors, shape = self._load(gradient)
        self.gradients = {"weight": vectors.T @ gradient, "bias": gradient.sum(0)}
        return (gradient @ self.parameters["weight"].T).reshape(shape)


class Flatten(Layer):
    """Flatten maps to a vector: row by row with the channels of a pixel together, or with `order="CHW"` map by map."""

    def __init__(self, order: Literal["HWC", "CHW"] = "HWC") -> None:
        super().__init__()
        check_choice("order", order, "HWC", "CHW")
        self.order = order

    def forward(self, x: Array, training: bool = False) -> Array:
        """N H W C -> N (H * W * C)."""
        images = self._images(x)
        maps = images if self.order == "HWC" else images.transpose(0, 3, 1, 2)
        return self._save(maps.reshape(len(maps), -1), maps.shape, x.shape)

    def backward(self, gradient: Array) -> Array:
        """Reshape the gradient to maps."""
        maps, shape = self._load(gradient)
        back = gradient.reshape(maps)
        return (back if self.order == "HWC" else back.transpose(0, 2, 3, 1)).reshape(shape)


def _he(shape: tuple[int, ...], seed: Seed, dtype: Any) -> Array:
    """Draw weights from N(0, sqrt(2 / fan_in)) (He and others 2015): the 2 makes up for ReLUs, which halve the variance."""
    fan_in = int(np.prod(shape[:-1]))
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype) * np.sqrt(2 / fan_in).astype(dtype)
