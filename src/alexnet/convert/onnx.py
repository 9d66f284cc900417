"""Read the layers of an ONNX file in a decoding process; weights in other files are not read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.convert.messages import read_message, to_array
from alexnet.convert.operations import DENSE, RELU, Operation, answer, convolution, normalisation, pooling
from alexnet.errors import WeightsError

# onnx/onnx.proto
SCHEMA = """
Model: Graph graph 7
Graph: Node* node 1, Tensor* initializer 5, Value* input 11
Node: string* input 1, string* output 2, string name 3, string op_type 4, Attribute* attribute 5
Attribute: string name 1, float f 2, int64 i 3, bytes s 4, int64* ints 8
Tensor: int64* dims 1, int32 data_type 2, bytes* float_data 4, string name 8, bytes raw_data 9, bytes* double_data 10, \
int32 data_location 14
Value: string name 1, Type type 2
Type: TensorType tensor_type 1
TensorType: Shape shape 2
Shape: Size* dim 1
Size: int64 dim_value 1
"""
KINDS = {1: ("<f4", "float_data"), 10: ("<f2", ""), 11: ("<f8", "double_data")}  # of data_type: NumPy's and the field
UNCHANGED = ("Dropout", "Softmax", "Flatten", "Reshape", "Identity")  # pass their first input on, or probabilities of it


def layers(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return `operations.answer` for a file."""
    return answer(_read, path)


def _read(path: Path) -> tuple[list[Operation], int]:
    graph = read_message(path, SCHEMA, "Model").graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    images = [value for value in graph.input if value.name not in tensors]
    if len(images) != 1:
        raise WeightsError(f"has {len(images)} inputs, not one for images")
    dims = [size.dim_value for size in images[0].type.tensor_type.shape.dim]
    size = dims[2] if len(dims) == 4 and dims[2] == dims[3] and 0 < dims[2] <= 8192 else 0
    return list(_operations(graph, tensors, images[0].name, size)), size


def _operations(graph: Any, tensors: dict[str, Any], before: str, size: int) -> Iterator[Operation]:
    """Yield the layers that compute something, which must form a chain from the images, called `before`, of `size` pixels."""
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        name = (node.name or (node.output[0] if node.output else ""))[:60]
        if not node.input or node.input[0] != before or not node.output:
            raise WeightsError(f"is not a chain of layers: {name!r} does not read {before[:60]!r}")
        before = node.output[0]
        settings = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type in UNCHANGED:
            continue
        if node.op_type == "AveragePool" and set(settings["kernel_shape"].ints) == {1}:  # torchvision's, at 224 pixels
            continue
        if node.op_type not in TEXTS:
            raise WeightsError(f"has a layer {name!r} of the type {node.op_type[:60]!r}, which no AlexNet here has")
        text, size = TEXTS[node.op_type](settings, name, size)
        arrays = tuple(_array(tensors, given) for given in node.input[1:] if given)
        if node.op_type == "Gemm" and not _number(settings, "transB", 0):
            arrays = (arrays[0].T, *arrays[1:])
        yield Operation(name, text, arrays)


def _convolution(settings: dict[str, Any], name: str, size: int) -> tuple[str, int]:
    kernel, stride, padding, _ = _window(settings, name)
    text = convolution(kernel, stride, padding, _number(settings, "group", 1))
    return text, (size + 2 * padding - kernel) // stride + 1


def _pooling(settings: dict[str, Any], name: str, size: int) -> tuple[str, int]:
    window, stride, padding, after = _window(settings, name)
    if padding or after not in (0, stride - 1):
        raise WeightsError(f"has a layer {name!r} with padding that no AlexNet here has")
    # Opsets before 10 cannot round up: their files have padding in its place, at the right and at the bottom.
    up = bool(after) or _number(settings, "ceil_mode", 0) == 1
    whole = size < window or (size - window) % stride == 0
    return pooling(window, stride, "" if whole else "up" if up else "down"), (size - window) // stride + 1 + (up and not whole)


def _normalisation(settings: dict[str, Any], name: str, size: int) -> tuple[str, int]:
    alpha, beta, k = (
        settings[key].f if key in settings else default for key, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    return normalisation(_number(settings, "size", 0), alpha, beta, k), size


def _dense(settings: dict[str, Any], name: str, size: int) -> tuple[str, int]:
    if any(settings[key].f != 1 for key in ("alpha", "beta") if key in settings) or _number(settings, "transA", 0):
        raise WeightsError(f"has a layer {name!r} with settings that no AlexNet here has")
    return DENSE, size


def _relu(settings: dict[str, Any], name: str, size: int) -> tuple[str, int]:
    return RELU, size


TEXTS = {
    "Conv": _convolution,
    "MaxPool": _pooling,
    "LRN": _normalisation,
    "Gemm": _dense,
    "Relu": _relu,
}


def _number(settings: dict[str, Any], key: str, default: int) -> int:
    return int(settings[key].i) if key in settings else default


def _window(settings: dict[str, Any], name: str) -> tuple[int, int, int, int]:
    """Return kernel, stride, padding, and the padding at the right and the bottom if it is larger than that on the left."""

    def pairs(key: str, default: int, count: int = 2) -> list[int]:
        return list(settings[key].ints) if key in settings else [default] * count

    pads = pairs("pads", 0, 4)
    kernels, strides, dilations = pairs("kernel_shape", 0), pairs("strides", 1), pairs("dilations", 1)
    square = all(len(values) == 2 and len(set(values)) == 1 for values in (kernels, strides, pads[:2], pads[2:]))
    automatic = "auto_pad" in settings and settings["auto_pad"].s not in (b"", b"NOTSET")
    if not square or set(dilations) != {1} or automatic or min(kernels[0], strides[0], pads[2] - pads[0] + 1) < 1:
        raise WeightsError(f"has a layer {name!r} with a window that no AlexNet here has")
    return kernels[0], strides[0], pads[0], pads[2] - pads[0]


def _array(tensors: dict[str, Any], given: str) -> NDArray[np.float32]:
    if given not in tensors:
        raise WeightsError(f"holds no weights {given[:60]!r}")
    tensor = tensors[given]
    if tensor.data_location:
        raise WeightsError("has its weights in another file: save it as one, onnx.save(onnx.load(file), new_file)")
    if tensor.data_type not in KINDS:
        raise WeightsError(f"has weights {given[:60]!r} that are not float16, float32 or float64")
    kind, field = KINDS[tensor.data_type]
    parts = [tensor.raw_data] if tensor.raw_data else list(getattr(tensor, field)) if field else []
    return to_array(parts, kind, tensor.dims, given)
