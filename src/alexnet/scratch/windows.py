"""Sliding windows and padding, for convolution and pooling."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32 or float64, the same in all of a network
Pair = tuple[int, int]  # height and width
Padding = Literal["valid", "same"] | int | tuple[int, int]  # a number of zeros on both sides, or (before, after)
BLOCK = 1 << 23  # values of windows to copy at a time, which limits the memory of a convolution


def pair(size: int | Pair) -> Pair:
    """Return (height, width); one number means a square."""
    return (size, size) if isinstance(size, int) else size


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
