"""A network as ONNX models: traced by PyTorch, quantised by onnxruntime, with the preprocessing before it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

import alexnet
from alexnet.data.preprocessing import to_input
from alexnet.export.graph import IR, ONNXRUNTIME, OPSET, Graph, Value, chained, tensor, tidied
from alexnet.export.resize import fit_graph
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Preprocessing
from alexnet.run import ModelConfig


def network_model(network: AlexNet, preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return the network from `images`, N 3 I I float32 (I = `preprocessing.resized`), to `logits`, N x classes.

    Its layers one after the other, as they are: without the forms of fused.py, so that weights come out as they were trained.
    """
    layers = deepcopy(network.layers)
    if preprocessing.scale_factor > 1:
        layers = {"upscale": nn.Upsample(scale_factor=preprocessing.scale_factor, mode="nearest"), **layers}
    plain = nn.Sequential()
    for name, layer in layers.items():
        plain.add_module(name, layer)
    example = torch.zeros(2, 3, preprocessing.resized, preprocessing.resized)
    return _traced(plain.cpu().float().eval(), example, "images", "logits", many=True)


class _Prepare(nn.Module):
    """`to_input` as a layer."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        return to_input(pixels, self.preprocessing).contiguous()


def preparation(preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return all that makes of an image, H W 3 uint8 of any size, the network's `images`, 1 3 I I float32."""
    return chained(
        fit_graph(preprocessing),
        prepare=_traced(_Prepare(preprocessing), torch.zeros(1, preprocessing.side, preprocessing.side, 3), "pixels", "images"),
    )


def save(model: onnx.ModelProto, config: ModelConfig, place: Path, *, bare: bool) -> Path:
    """Write a network's model, unless it is to be `bare` with all that stands before and after it; return `place`."""
    if not bare:
        model = chained(preparation(config.preprocessing), network=model, calibrate=_calibration(config))
    onnx.save(tidied(model, _metadata(config)), place)
    return place


def _calibration(config: ModelConfig) -> onnx.ModelProto:
    graph, classes = Graph(), len(config.labels)
    logits = Value(graph, "logits") / np.float32(config.temperature)
    found = graph.op("Squeeze", graph.op("Softmax", logits, axis=1), [0])
    return graph.model(tensor("logits", np.float32, [1, classes]), found, tensor("probabilities", np.float32, [classes]))


def _metadata(config: ModelConfig) -> dict[str, str]:
    """Return what the model says of itself; lists are JSON, in ASCII, as labels may be names of files in any encoding."""
    return {
        "labels": json.dumps(config.labels),
        "variant": config.variant,
        "input": json.dumps([3, config.preprocessing.input, config.preprocessing.input]),
        "preprocessing": config.preprocessing.model_dump_json(),
        "temperature": str(config.temperature),
        "onnxruntime": f">={ONNXRUNTIME}",
        "version": alexnet.__version__,
        "sha256": config.sha256,
    }


def _traced(module: nn.Module, example: Tensor, given: str, found: str, many: bool = False) -> onnx.ModelProto:
    """Let PyTorch trace `module`; with `many`, for any number of images."""
    count = {0: torch.export.Dim("batch", min=1, max=1 << 20)} if many else {}
    with _silence(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=(count,),
            input_names=[given],
            output_names=[found],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.ir_version = IR
    return model


class _Reader:
    """Gives onnxruntime an image at a time."""

    def __init__(self, images: Iterator[NDArray[Any]], preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next input of the network, 1 3 I I; None after the last."""
        image = next(self.images, None)
        return (
            None
            if image is None
            else {"images": to_input(torch.from_numpy(image)[None], self.preprocessing).contiguous().numpy()}
        )


def quantised(
    model: onnx.ModelProto, images: Iterator[NDArray[Any]], preprocessing: Preprocessing, folder: Path
) -> onnx.ModelProto:
    """Return a network's model in whole numbers of 8 bits, each channel's weights with a scale of their own (QDQ).

    The ranges of what is between layers are those of `images`, S S 3 each. Files are made in `folder`.
    """
    before, after = folder / "before.onnx", folder / "after.onnx"
    onnx.save(model, before)
    with _silence():
        quantize_static(
            before,
            after,
            _Reader(images, preprocessing),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv", "Relu", "MaxPool", "Gemm"],  # norms lose more than they save
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},  # logits in 255 steps are too coarse
        )
    return onnx.load(after)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep back what is told of the inside of others' code."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
