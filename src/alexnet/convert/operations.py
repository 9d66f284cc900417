"""Layers of trained networks in a common form, as readers in a decoding process find them in files of Caffe and ONNX."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import WeightsError

MAX_OPERATIONS = 1000
MAX_BYTES = 1 << 30  # of all weights in float32
RELU, DENSE = "ReLU", "a dense layer"


class Operation(NamedTuple):
    """A layer: its name, what it computes, as text that is equal for equal layers, and its weights, with its bias if any."""

    name: str
    text: str
    arrays: tuple[NDArray[np.float32], ...] = ()


Reader = Callable[[Path], tuple[list[Operation], int]]  # a file to its layers and the size of its images, 0 if unknown


def convolution(kernel: int, stride: int, padding: int, groups: int) -> str:
    """Return the text of a convolution with square kernels."""
    return f"a convolution with kernel {kernel}, stride {stride}, padding {padding}, groups {groups}"


def normalisation(size: int, alpha: float, beta: float, k: float) -> str:
    """Return the text of a response normalisation across all channels, with Caffe's alpha, which multiplies the mean."""
    return f"response normalisation with size {size}, alpha {alpha:.6g}, beta {beta:.6g}, k {k:.6g}"


def pooling(window: int, stride: int, rounds: str = "") -> str:
    """Return the text of a max pooling; `rounds`, `up` or `down`, if windows do not cover the maps exactly."""
    return f"max pooling with window {window}, stride {stride}{rounds and f', rounded {rounds}'}"


def answer(read: Reader, path: Path) -> tuple[dict[str, Any], bytes]:
    """Return `{"layers": [[name, text, [shape, …]], …], "size"}` and the arrays, float32, or `{"refused": reason}`."""
    try:
        operations, size = read(path)
        if len(operations) > MAX_OPERATIONS:
            raise WeightsError(f"has more than {MAX_OPERATIONS:,} layers")
        arrays = [array for operation in operations for array in operation.arrays]
        if sum(array.nbytes for array in arrays) > MAX_BYTES:
            raise WeightsError(f"has more than {MAX_BYTES >> 30} GB of weights: no AlexNet is that large")
        # A name that is not UTF-8 is of type bytes.
        facts = [[str(name), text, [array.shape for array in arrays]] for name, text, arrays in operations]
        return {"layers": facts, "size": size}, b"".join(array.tobytes() for array in arrays)
    except WeightsError as error:
        reason = str(error)
    except MemoryError:
        reason = "is too large to read"
    except Exception as error:  # protocol buffers raise several kinds on damaged files
        reason = f"cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return {"refused": reason}, b""
