"""The layers that hold and shape AlexNet, forward and backward, in NumPy: convolution, pooling, dense, flatten.

norms.py has those that normalise, units.py those that act on each unit alone and the loss.

Images are N H W C: how many, height, width, channels. A layer keeps in `forward` what its `backward` will need; `backward`
takes the gradient of the loss by the layer's output, writes that by its parameters into `gradients`, and returns that by its
input.
"The paper" is Krizhevsky, Sutskever, Hinton 2012. Padding is with zeros, before pooling too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from alexnet.scratch.layer import Array, Layer
from alexnet.scratch.windows import Padding, pad, pair, places, shifts, unpad, windows


class Conv2D(Layer):
    """Convolution: every kernel slides over the image, and at each place its weights are multiplied with what lies beneath.

    y[n, i, j, f] = b[f] + sum over u, v, c of w[u, v, c, f] * x[n, i * S + u, j * S + v, c]          (paper, section 3.5)

    With K pixels a side, stride S and P zeros on each side, W pixels become (W + 2P - K) / S + 1. All places of an image are
    one matrix product: a row for each place, holding the window beneath the kernel, times a column for each kernel.
    With `groups`, each part of the kernels sees its part of the channels alone (the paper's two GPUs). Kernels start at
    N(0, sqrt(2 / fan_in)), biases at 0; `weight` is K K C/groups F.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: Padding = "valid",
        groups: int = 1,
        bias: bool = True,
        seed: int | list[int] = 0,
    ) -> None:
        super().__init__()
        self.filters, self.kernel, self.stride = filters, pair(kernel_size), pair(stride)
        self.padding, self.groups, self.bias, self.seed = padding, groups, bias, seed

    def forward(self, x: Array, training: bool = False) -> Array:
        """N H W C -> N H' W' F; one image H W C -> H' W' F."""
        images = self._images(x)
        channels = images.shape[3]
        if channels % self.groups or self.filters % self.groups:
            raise ValueError(f"Conv2D: {channels} channels and {self.filters} filters do not divide by {self.groups} groups")
        if not self.parameters:
            height, width = self.kernel
            self.parameters["weight"] = _he((height, width, channels // self.groups, self.filters), self.seed, x.dtype)
            if self.bias:
                self.parameters["bias"] = np.zeros(self.filters, x.dtype)
        padded = pad(images, self.padding, self.kernel)
        self._kept = (padded, images.shape, x.ndim)
        size = places(padded, self.kernel, self.stride, "Conv2D")
        y = np.empty((len(padded), *size, self.filters), x.dtype)
        for part, columns in self._parts():
            weight = self.parameters["weight"][..., columns].reshape(-1, self.filters // self.groups)
            for rows, under in windows(padded[..., part], self.kernel, self.stride):
                y[rows, ..., columns] = (under @ weight).reshape(-1, *size, weight.shape[1])
        if self.bias:
            y += self.parameters["bias"]
        return y[0] if x.ndim == 3 else y

    def backward(self, gradient: Array) -> Array:
        """Each weight's gradient sums over all places; each pixel's over all windows that it lies in."""
        padded, shape, rank = self._recall()
        gradient = gradient[None] if rank == 3 else gradient
        weight = self.parameters["weight"]
        self.gradients["weight"] = np.zeros_like(weight)
        if self.bias:
            self.gradients["bias"] = gradient.sum((0, 1, 2))
        back = np.zeros_like(padded)
        for part, columns in self._parts():
            flat = weight[..., columns].reshape(-1, self.filters // self.groups)
            for rows, under in windows(padded[..., part], self.kernel, self.stride):
                above = gradient[rows, ..., columns].reshape(len(under), -1)
                self.gradients["weight"][..., columns] += (under.T @ above).reshape(weight[..., columns].shape)
                beneath = (above @ flat.T).reshape(-1, *gradient.shape[1:3], *self.kernel, weight.shape[2])
                for u, v, place in shifts(self.kernel, self.stride, gradient.shape):
                    back[(rows, *place, part)] += beneath[:, :, :, u, v]
        x = unpad(back, self.padding, self.kernel, shape)
        return x[0] if rank == 3 else x

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Yield the channels and the filters of each group."""
        channels, filters = self.parameters["weight"].shape[2], self.filters // self.groups
        for group in range(self.groups):
            yield slice(group * channels, (group + 1) * channels), slice(group * filters, (group + 1) * filters)


class MaxPooling2D(Layer):
    """The largest value of each window, channel by channel.

    y[n, i, j, c] = max over u, v of x[n, i * S + u, j * S + v, c]

    A stride smaller than the window makes the windows overlap: 3 and 2 in the paper, which gained 0.4 % top-1 (section 3.4).
    `stride` left out is the window's size. The gradient goes to the pixel that was the largest, to the first of equals.
    """

    def __init__(
        self, pool_size: int | tuple[int, int] = 2, stride: int | tuple[int, int] | None = None, padding: Padding = "valid"
    ) -> None:
        super().__init__()
        self.kernel, self.padding = pair(pool_size), padding
        self.stride = self.kernel if stride is None else pair(stride)

    def forward(self, x: Array, training: bool = False) -> Array:
        """N H W C -> N H' W' C; one image H W C -> H' W' C."""
        images = self._images(x)
        padded = pad(images, self.padding, self.kernel)
        size = places(padded, self.kernel, self.stride, "MaxPooling2D")
        shape = (len(padded), *size, padded.shape[3])
        y = np.full(shape, -np.inf, x.dtype)
        winner = np.zeros(shape, np.int32)  # which place of the window, counted in rows
        for u, v, place in shifts(self.kernel, self.stride, shape):
            seen = padded[(slice(None), *place)]
            larger = seen > y
            np.copyto(y, seen, where=larger)
            winner[larger] = u * self.kernel[1] + v
        self._kept = (winner, padded.shape, images.shape, x.ndim)
        return y[0] if x.ndim == 3 else y

    def backward(self, gradient: Array) -> Array:
        """To the largest pixel of each window."""
        winner, padded, shape, rank = self._recall()
        gradient = gradient[None] if rank == 3 else gradient
        back = np.zeros(padded, gradient.dtype)
        for u, v, place in shifts(self.kernel, self.stride, winner.shape):
            back[(slice(None), *place)] += np.where(winner == u * self.kernel[1] + v, gradient, 0)
        x = unpad(back, self.padding, self.kernel, shape)
        return x[0] if rank == 3 else x


class Dense(Layer):
    """Every unit sees every input: y = x w + b. `weight` is inputs x units; starts as a convolution's kernels do."""

    def __init__(self, units: int, seed: int | list[int] = 0) -> None:
        super().__init__()
        self.units, self.seed = units, seed

    def forward(self, x: Array, training: bool = False) -> Array:
        """N inputs -> N units."""
        if x.ndim != 2:
            raise ValueError(f"Dense takes vectors N x inputs, not {' x '.join(map(str, x.shape))}: put Flatten before it")
        if not self.parameters:
            self.parameters = {
                "weight": _he((x.shape[1], self.units), self.seed, x.dtype),
                "bias": np.zeros(self.units, x.dtype),
            }
        self._kept = (x,)
        y: Array = x @ self.parameters["weight"] + self.parameters["bias"]
        return y

    def backward(self, gradient: Array) -> Array:
        """dL/dw = x' g, dL/db = sum of g, dL/dx = g w'."""
        (x,) = self._recall()
        self.gradients = {"weight": x.T @ gradient, "bias": gradient.sum(0)}
        back: Array = gradient @ self.parameters["weight"].T
        return back


class Flatten(Layer):
    """Maps to a vector: row by row, pixel by pixel, all channels of a pixel together; or with `order="CHW"` map by map."""

    def __init__(self, order: Literal["HWC", "CHW"] = "HWC") -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Array, training: bool = False) -> Array:
        """N H W C -> N (H * W * C)."""
        images = self._images(x)
        maps = images if self.order == "HWC" else images.transpose(0, 3, 1, 2)
        self._kept = (maps.shape, x.shape)
        return maps.reshape(len(maps), -1)

    def backward(self, gradient: Array) -> Array:
        """Back to maps."""
        maps, shape = self._recall()
        back = gradient.reshape(maps)
        return (back if self.order == "HWC" else back.transpose(0, 2, 3, 1)).reshape(shape)


def _he(shape: tuple[int, ...], seed: int | list[int], dtype: Any) -> Array:
    """Draw first weights from N(0, sqrt(2 / fan_in)) (He and others 2015): a ReLU halves the variance, this doubles it."""
    fan_in = int(np.prod(shape[:-1]))
    drawn: Array = np.random.default_rng(seed).standard_normal(shape).astype(dtype) * np.sqrt(2 / fan_in).astype(dtype)
    return drawn
