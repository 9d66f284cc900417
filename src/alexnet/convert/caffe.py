"""Read the layers of a `.caffemodel` in a decoding process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.convert.messages import read_message, to_array
from alexnet.convert.operations import DENSE, RELU, Operation, answer, convolution, normalisation, pooling
from alexnet.errors import WeightsError

# src/caffe/proto/caffe.proto; fields that are repeated in one message and optional in another are stored alike.
PARAMETERS = "Convolution convolution_param {}, Dense inner_product_param {}, LRN lrn_param {}, Pooling pooling_param {}"
SCHEMA = f"""
Net: V1Layer* layers 2, Layer* layer 100
V1Layer: bytes layer 1, string* bottom 2, string* top 3, string name 4, int32 type 5, Blob* blobs 6, ReLU relu_param 30, \
{PARAMETERS.format(10, 17, 18, 19)}
Layer: string name 1, string type 2, string* bottom 3, string* top 4, Blob* blobs 7, ReLU relu_param 123, \
{PARAMETERS.format(106, 117, 118, 121)}
Blob: int32 num 1, int32 channels 2, int32 height 3, int32 width 4, bytes* data 5, Shape shape 7, bytes* double_data 8
Shape: int64* dim 1
Convolution: uint32* pad 3, uint32* kernel_size 4, uint32 group 5 1, uint32* stride 6, uint32 pad_h 9, uint32 pad_w 10, \
uint32 kernel_h 11, uint32 kernel_w 12, uint32 stride_h 13, uint32 stride_w 14, uint32* dilation 18
Pooling: int32 pool 1, uint32* kernel_size 2, uint32* stride 3, uint32* pad 4, uint32 kernel_h 5, uint32 kernel_w 6, \
uint32 stride_h 7, uint32 stride_w 8, uint32 pad_h 9, uint32 pad_w 10, bool global_pooling 12
LRN: uint32 local_size 1 5, float alpha 2 1, float beta 3 0.75, int32 norm_region 4, float k 5 1
Dense: bool transpose 6
ReLU: float negative_slope 1
"""
CONVOLUTION, INNER_PRODUCT, LRN, POOLING, RELU_LAYER, DROPOUT = (
    "Convolution",
    "InnerProduct",
    "LRN",
    "Pooling",
    "ReLU",
    "Dropout",
)
# Kinds in a chain from image to logits, and others that an AlexNet may have around it, with their numbers in V1.
CHAIN = {4: CONVOLUTION, 14: INNER_PRODUCT, 15: LRN, 17: POOLING, 18: RELU_LAYER, 6: DROPOUT}
AROUND = {1: "Accuracy", 5: "Data", 9: "HDF5Data", 12: "ImageData", 20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split"}
AROUND |= {24: "WindowData", 29: "MemoryData", 30: "ArgMax", 32: "DummyData", 36: "Silence", -1: "Input"}
V1_KINDS = CHAIN | AROUND


def layers(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return `operations.answer` for a file."""
    return answer(lambda path: (list(_operations(read_message(path, SCHEMA, "Net"))), 0), path)


def _operations(net: Any) -> Iterator[Operation]:
    """Yield the layers that compute something, which must form a chain."""
    before = None
    for layer in net.layer or net.layers:
        if not net.layer and layer.HasField("layer"):
            raise WeightsError("is in the layout of 2013: convert it with Caffe's upgrade_net_proto_binary")
        kind = layer.type if net.layer else V1_KINDS.get(layer.type, f"number {layer.type}")
        name = layer.name[:60]
        if kind in AROUND.values() and not layer.blobs:
            continue
        if kind not in CHAIN.values():
            raise WeightsError(f"has a layer {name!r} of the type {kind[:60]!r}, which no AlexNet here has")
        if before is not None and list(layer.bottom) not in ([], [before]):
            raise WeightsError(f"is not a chain of layers: {name!r} reads {', '.join(layer.bottom)[:60]!r}, not {before!r}")
        before = layer.top[0] if layer.top else before
        if kind != DROPOUT:
            axes = (4 if kind == CONVOLUTION else 2, 1)  # of the weights and the bias
            arrays = (_array(blob, count, name) for blob, count in zip(layer.blobs, axes, strict=False))
            yield Operation(name, _text(layer, kind, name), tuple(arrays))


def _text(layer: Any, kind: str, name: str) -> str:
    windows, norm = layer.convolution_param if kind == CONVOLUTION else layer.pooling_param, layer.lrn_param
    kernel, stride, padding = (_side(windows, *field, name) for field in (("kernel", 0), ("stride", 1), ("pad", 0)))
    if kind == CONVOLUTION and set(windows.dilation) <= {1}:
        return convolution(kernel, stride, padding, windows.group)
    if kind == POOLING and not (windows.pool or windows.global_pooling or padding):
        return pooling(kernel, stride)
    if kind == LRN and not norm.norm_region:
        return normalisation(norm.local_size, norm.alpha, norm.beta, norm.k)
    if kind == RELU_LAYER and not layer.relu_param.negative_slope:
        return RELU
    if kind == INNER_PRODUCT and not layer.inner_product_param.transpose:
        return DENSE
    raise WeightsError(f"has a layer {name!r} of the type {kind!r} with settings that no AlexNet here has")


def _side(windows: Any, field: str, default: int, name: str) -> int:
    """Return a field in pixels, which must be the same for height and width."""
    values = {*getattr(windows, "kernel_size" if field == "kernel" else field)}
    values |= {getattr(windows, f"{field}_{side}") for side in "hw" if windows.HasField(f"{field}_{side}")}
    if len(values) > 1:
        raise WeightsError(f"has a layer {name!r} whose {field} is not square")
    return int(values.pop()) if values else default


def _array(blob: Any, axes: int, name: str) -> NDArray[np.float32]:
    """Return a weight or a bias of so many axes; earlier versions stored four, the first ones of size 1."""
    shape = list(blob.shape.dim) if blob.HasField("shape") else [blob.num, blob.channels, blob.height, blob.width]
    if set(shape[:-axes]) <= {1}:
        shape = shape[-axes:]
    return to_array(blob.double_data or blob.data, "<f8" if blob.double_data else "<f4", shape, name)
