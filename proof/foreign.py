"""Networks with random weights in files of Caffe and of the ONNX model zoo, for proofs and tests.

Both are written from published descriptions, without the code that reads them: protocol buffers byte by byte from caffe.proto,
ONNX with its own library.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]  # of each layer, for BGR images
CONVOLUTIONS = {
    "conv1": (11, 4, 0, 1),
    "conv2": (5, 1, 2, 2),
    "conv3": (3, 1, 1, 1),
    "conv4": (3, 1, 1, 2),
    "conv5": (3, 1, 1, 2),
}
# models/bvlc_alexnet/deploy.prototxt and models/bvlc_reference_caffenet/deploy.prototxt
ORDERS = {
    "bvlc": "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 ",
    "caffenet": "conv1 relu1 pool1 norm1 conv2 relu2 pool2 norm2 ",
}
REST = "conv3 relu3 conv4 relu4 conv5 relu5 pool5 fc6 relu6 drop6 fc7 relu7 drop7 fc8 prob"
KINDS = {
    "data": ("Data", 5), "conv": ("Convolution", 4), "relu": ("ReLU", 18), "norm": ("LRN", 15), "pool": ("Pooling", 17),
    "fc": ("InnerProduct", 14), "drop": ("Dropout", 6), "prob": ("Softmax", 20),
}  # fmt: skip


def weights(classes: int, width: float = 1.0, seed: int = 0) -> Weights:
    """Return random weights of BVLC AlexNet or CaffeNet that keep the size of activations, so that logits vary."""
    rng = np.random.default_rng(seed)
    channels = [3, *(round(n * width / 2) * 2 for n in (96, 256, 384, 384, 256))]
    units = [36 * channels[-1], round(4096 * width), round(4096 * width), classes]
    shapes = {
        name: (outputs, inputs // groups, kernel, kernel)
        for (inputs, outputs), (name, (kernel, _, _, groups)) in zip(pairwise(channels), CONVOLUTIONS.items(), strict=True)
    }
    shapes |= {f"fc{6 + i}": (outputs, inputs) for i, (inputs, outputs) in enumerate(pairwise(units))}
    result: Weights = {}
    for name, shape in shapes.items():
        std = (2 / np.prod(shape[1:])) ** 0.5 / (50 if name == "conv1" else 1)  # images are of grey levels up to 255
        kernel = rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
        result[name] = kernel, rng.standard_normal(shape[0], dtype=np.float32) * np.float32(0.1)
    return result


# Caffe


def _varint(value: int) -> bytes:
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


def number(field: int, value: int) -> bytes:
    """Encode an integer field."""
    return _varint(field << 3) + _varint(value)


def real(field: int, value: float) -> bytes:
    """Encode a float field."""
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def data(field: int, content: bytes | str) -> bytes:
    """Encode a field of bytes, a message or packed numbers."""
    content = content.encode() if isinstance(content, str) else content
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def blob(array: NDArray[np.float32], legacy: bool = False, double: bool = False) -> bytes:
    """Encode a BlobProto; `legacy`: with num, channels, height and width instead of a shape."""
    if legacy:
        four = (1,) * (4 - array.ndim) + array.shape
        head = b"".join(number(1 + i, size) for i, size in enumerate(four))
    else:
        head = data(7, data(1, b"".join(map(_varint, array.shape))))
    return head + (data(8, array.astype("<f8").tobytes()) if double else data(5, array.astype("<f4").tobytes()))


def names_of(network: str) -> list[str]:
    """Return the layers of `bvlc` or `caffenet`, in order."""
    return (ORDERS[network] + REST).split()


def caffemodel(
    network: str, tensors: Weights, version: int = 2, legacy: bool = False, double: bool = False, names: Sequence[str] = ()
) -> bytes:
    """Encode a NetParameter: `version` 1 has `layers`, 2 has `layer`; `names` are the layers to write, else all."""
    content, top = data(1, "AlexNet" if network == "bvlc" else "CaffeNet"), "data"
    for name in ["data", *(names or names_of(network))]:
        kind, code = KINDS[name.rstrip("0123456789")]
        inside = kind in ("ReLU", "Dropout")  # in place
        bottom, top = top, top if inside else name
        wires = (b"" if name == "data" else data(3 if version == 2 else 2, bottom)) + data(4 if version == 2 else 3, top)
        wires += data(4, "label") if name == "data" and version == 2 else b""
        settings = {}
        if kind == "Convolution":
            kernel, stride, pad, group = CONVOLUTIONS[name]
            outputs = len(tensors[name][0])
            settings[106, 10] = number(1, outputs) + number(3, pad) + number(4, kernel) + number(5, group) + number(6, stride)
        elif kind == "LRN":
            settings[118, 18] = number(1, 5) + real(2, 1e-4) + real(3, 0.75)
        elif kind == "Pooling":
            settings[121, 19] = number(1, 0) + number(2, 3) + number(3, 2)
        elif kind == "InnerProduct":
            settings[117, 17] = number(1, len(tensors[name][0]))
        blobs = [blob(array, legacy, double) for array in tensors.get(name, ())]
        parts = b"".join(data(fields[2 - version], value) for fields, value in settings.items())
        if version == 2:
            layer = data(1, name) + data(2, kind) + wires + b"".join(data(7, each) for each in blobs) + parts
        else:
            layer = wires + data(4, name) + number(5, code) + b"".join(data(6, each) for each in blobs) + parts
        content += data(100 if version == 2 else 2, layer)
    return content


def prototxt(network: str, tensors: Weights, side: int = 227) -> str:
    """Return the description of a network for deployment, as Caffe's `deploy.prototxt`."""
    text, top = f'input: "data"\ninput_dim: 1\ninput_dim: 3\ninput_dim: {side}\ninput_dim: {side}\n', "data"
    for name in names_of(network):
        kind, _ = KINDS[name.rstrip("0123456789")]
        bottom, top = top, top if kind in ("ReLU", "Dropout") else name
        settings = ""
        if kind == "Convolution":
            kernel, stride, pad, group = CONVOLUTIONS[name]
            sizes = f"num_output: {len(tensors[name][0])} kernel_size: {kernel} stride: {stride} pad: {pad} group: {group}"
            settings = f"convolution_param {{ {sizes} }}"
        elif kind == "LRN":
            settings = "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"
        elif kind == "Pooling":
            settings = "pooling_param { pool: MAX kernel_size: 3 stride: 2 }"
        elif kind == "InnerProduct":
            settings = f"inner_product_param {{ num_output: {len(tensors[name][0])} }}"
        text += f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {settings} }}\n'
    return text


# ONNX


def zoo(network: str, tensors: Weights, opset: int = 7, side: int = 224, floats: bool = False) -> bytes:
    """Return the file of a network as in the ONNX model zoo; `floats`: weights are stored as numbers instead of bytes.

    Opsets before 10 cannot round sizes up; there, the zoo's files pad the right and the lower side by 1.
    """
    from onnx import TensorProto, helper

    nodes, initializers, x = [], [], "data_0"
    rounding = {"ceil_mode": 1} if opset >= 10 else {"pads": [0, 0, 1, 1]}
    for name in names_of(network):
        kind, _ = KINDS[name.rstrip("0123456789")]
        inputs = [x]
        for part, array in zip("wb", tensors.get(name, ()), strict=False):
            inputs.append(f"{name}_{part}_0")
            values = array.ravel() if floats else array.tobytes()
            initializers.append(helper.make_tensor(inputs[-1], TensorProto.FLOAT, array.shape, values, raw=not floats))
        x = f"{name}_1"
        if kind == "Convolution":
            kernel, stride, pad, group = CONVOLUTIONS[name]
            sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "group": group}
            nodes.append(helper.make_node("Conv", inputs, [x], **sizes))
        elif kind == "LRN":
            nodes.append(helper.make_node("LRN", inputs, [x], size=5, alpha=1e-4, beta=0.75, bias=1.0))
        elif kind == "Pooling":
            nodes.append(helper.make_node("MaxPool", inputs, [x], kernel_shape=[3, 3], strides=[2, 2], **rounding))
        elif kind == "InnerProduct":
            if name == "fc6":
                shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, tensors[name][0].shape[1]])
                initializers.append(shape)
                nodes.append(helper.make_node("Reshape", [inputs[0], "shape"], ["flat"]))
                inputs[0] = "flat"
            broadcast = {"broadcast": 1} if opset < 7 else {}
            nodes.append(helper.make_node("Gemm", inputs, [x], transB=1, **broadcast))
        elif kind == "Dropout":
            extra = {"is_test": 1} if opset < 7 else {}
            nodes.append(helper.make_node("Dropout", inputs, [x], **extra, **({"ratio": 0.5} if opset < 12 else {})))
        else:
            nodes.append(helper.make_node({"ReLU": "Relu", "Softmax": "Softmax"}[kind], inputs, [x]))
    images = helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, side, side])
    declared = [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in initializers]
    logits = helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, len(tensors["fc8"][1])])
    graph = helper.make_graph(nodes, network, [images, *declared], [logits], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if opset < 10 else 7)
    encoded: bytes = model.SerializeToString()
    return encoded
