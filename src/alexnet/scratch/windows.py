"""Sliding windows and padding, for convolution and pooling; checks of arguments, for all layers."""

import math
import operator
from collections.abc import Iterator
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32 or float64, the same in all of a network
Pair = tuple[int, int]  # height and width
Padding = Literal["valid", "same"] | int | tuple[int, int]  # a number of zeros on both sides, or (before, after)
BLOCK = 1 << 23  # values of windows to copy at a time, which limits the memory of a convolution


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return the argument `value` as an integer, which must be `least` or more."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} is {value!r}, but should be a whole number, {least} or more")
    return number


def pair(name: str, size: Any, least: int = 1) -> Pair:
    """Return (height, width), or (before, after); one number stands for both."""
    sizes = size if isinstance(size, tuple | list) else (size, size)
    if len(sizes) != 2:
        raise ValueError(f"{name} is {size!r}, but should be one number or two")
    first, second = (whole(name, each, least) for each in sizes)
    return first, second


def nonnegative(name: str, value: Any, below: float = math.inf) -> float:
    """Return the argument `value`, which must be a number from 0 to `below`."""
    if not isinstance(value, Real) or not 0 <= float(value) < below:
        limit = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"{name} is {value!r}, but should be a number, 0 or more{limit}")
    return float(value)


def check_choice(name: str, value: Any, *known: Any) -> None:
    """Raise ValueError unless the argument `value` is one of `known`."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}, but should be {' or '.join(map(repr, known))}")


def check_floats(name: str, x: Any) -> None:
    """Raise ValueError unless `x` is an array of floats: weights as integers would all be rounded to 0."""
    if not isinstance(x, np.ndarray) or not np.issubdtype(x.dtype, np.floating):
        given = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(f"{name} takes arrays of float32 or float64, not {given}: for images, images.astype(np.float32) / 255")


def check_padding(padding: Any) -> Padding:
    """Return the argument `padding`, a number of zeros as (before, after)."""
    if isinstance(padding, str):
        check_choice("padding", padding, "valid", "same")
        return padding  # type: ignore[return-value]
    return pair("padding", padding, least=0)


def _sides(padding: Padding, kernel: int) -> tuple[int, int]:
    """Return the number of zeros before and after an axis; `same` is (K - 1) // 2 on both sides."""
    if isinstance(padding, tuple):
        return padding
    size = {"valid": 0, "same": (kernel - 1) // 2}[padding] if isinstance(padding, str) else padding
    return size, size


def pad(images: Array, padding: Padding, kernel: Pair) -> Array:
    """Pad images, N H W C, with zeros."""
    sides = (_sides(padding, kernel[0]), _sides(padding, kernel[1]))
    return np.pad(images, ((0, 0), *sides, (0, 0))) if any(map(any, sides)) else images


def unpad(padded: Array, padding: Padding, kernel: Pair, shape: tuple[int, ...]) -> Array:
    """Remove the padding from images of `shape`."""
    (top, _), (left, _) = _sides(padding, kernel[0]), _sides(padding, kernel[1])
    return padded[:, top : top + shape[1], left : left + shape[2]]


def output_size(padded: Array, kernel: Pair, stride: Pair, name: str) -> Pair:
    """Return the number of windows that fit vertically and horizontally: (W + 2P - K) / S + 1, rounded down."""
    height, width = padded.shape[1:3]
    if kernel[0] > height or kernel[1] > width:
        window = f"a window of {kernel[0]}x{kernel[1]}"
        raise ValueError(f"{name}: {window} is larger than the image of {height}x{width}, padding included")
    return (height - kernel[0]) // stride[0] + 1, (width - kernel[1]) // stride[1] + 1


def windows(images: Array, kernel: Pair, stride: Pair) -> Iterator[tuple[slice, Array]]:
    """Yield the windows of a few images at a time, one per row with K * K * C values, copied from a strided view."""
    count, height, width, channels = images.shape
    # A row of a window is contiguous in memory, so it is treated as one axis of K * C values.
    flat = np.ascontiguousarray(images).reshape(count, height, width * channels)
    view = sliding_window_view(flat, (kernel[0], kernel[1] * channels), axis=(1, 2))
    view = view[:, :: stride[0], :: stride[1] * channels]
    step = max(1, BLOCK // int(np.prod(view.shape[1:])))
    for start in range(0, count, step):
        part = view[start : start + step]
        yield slice(start, start + len(part)), part.reshape(-1, kernel[0] * kernel[1] * channels)


def shifts(kernel: Pair, stride: Pair, shape: tuple[int, ...]) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Yield each position (u, v) in a window, with the rows and columns of the pixels at that position in all windows."""
    for u in range(kernel[0]):
        for v in range(kernel[1]):
            rows = slice(u, u + stride[0] * (shape[1] - 1) + 1, stride[0])
            yield u, v, (rows, slice(v, v + stride[1] * (shape[2] - 1) + 1, stride[1]))
