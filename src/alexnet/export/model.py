"""ONNX models of a network: traced by PyTorch, quantized by onnxruntime, and combined with the preprocessing."""

import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import compose, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

import alexnet
from alexnet.data.preprocessing import to_input
from alexnet.export.heat import heat as grad_cam
from alexnet.export.resize import crop_and_resize
from alexnet.inference.views import average, views
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Preprocessing
from alexnet.run import ModelConfig

OPSET, IR = 20, 9  # those of ONNX 1.15
ONNXRUNTIME = "1.17"  # the first version that reads both; IR 10 would need 1.18


def network_model(
    network: AlexNet, preprocessing: Preprocessing, *, codes: bool = False, heat: bool = False
) -> onnx.ModelProto:
    """Return the network from `images`, N 3 I I float32 (I = `preprocessing.resized`), to `logits`, N x classes.

    With `codes`, the output of the last hidden layer, N units, is a second output. With `heat`, the images are the views of
    one, and Grad-CAM of its most probable label is another output, I I. Layers are applied one after another, without fusing,
    so that the weights are the trained ones.
    """
    layers = deepcopy(network.layers)
    if preprocessing.scale_factor > 1:
        layers = {"upscale": nn.Upsample(scale_factor=preprocessing.scale_factor, mode="nearest"), **layers}
    plain = nn.Sequential(OrderedDict(layers)).cpu().float().eval()
    example = torch.zeros(preprocessing.view_count if heat else 2, 3, preprocessing.resized, preprocessing.resized)

    def with_more(images: Tensor) -> tuple[Tensor, ...]:
        outputs = {"": images}
        for name, layer in layers.items():
            outputs[name] = layer(list(outputs.values())[-1])
        *_, hidden, logits = outputs.values()
        found = [logits, hidden] if codes else [logits]
        if heat:
            target = average(logits[:, None])[0].argmax()
            found.append(grad_cam(layers, outputs, target, preprocessing.resized))
        return tuple(found)

    if not codes and not heat:
        return _traced(plain, [example], ["images"], ["logits"], ["batch"])
    results = ["logits", *["codes"] * codes, *["heat"] * heat]
    return _traced(_Function(with_more, plain), [example], ["images"], results, [] if heat else ["batch"])


class _Function(nn.Module):
    """A function as a module, which tracing needs, with the module whose weights it uses."""

    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]], weights: nn.Module | None = None) -> None:
        super().__init__()
        self.weights = weights
        self.forward = function


def preprocessing_model(preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return the preprocessing, from `image`, H W 3 uint8 of any size, to `images`, views 3 I I float32."""

    def preprocess(image: Tensor) -> Tensor:
        square = crop_and_resize(image, preprocessing)[None]
        return torch.cat(list(views(square, preprocessing, preprocessing.view_count))).contiguous()

    example = torch.zeros(50, 70, 3, dtype=torch.uint8)
    return _traced(_Function(preprocess), [example], ["image"], ["images"], ["height", "width"])


def save(model: onnx.ModelProto, config: ModelConfig, path: Path, *, bare: bool) -> Path:
    """Write a network's model, with its preprocessing and calibration unless `bare`; return `path`.

    If the run has a threshold, the model must have `codes`, and the file says whether an image is known.
    """
    if not bare:
        model = _chained(preprocessing_model(config.preprocessing), network=model, calibrate=_calibration(config))
        results = sorted(model.graph.output, key=lambda result: result.name == "heat")  # the last
        del model.graph.output[:]
        model.graph.output.extend(results)
    onnx.save(_tidied(model, _metadata(config)), path)
    return path


def _calibration(config: ModelConfig) -> onnx.ModelProto:
    """Return the model from `logits`, views x classes, to `probabilities`; with a threshold, from `codes`, too, to `known`."""
    count, known = config.preprocessing.view_count, deepcopy(config.known)
    example = torch.zeros(count, len(config.labels))

    def calibrate(logits: Tensor) -> Tensor:
        return (average(logits[:, None]) / config.temperature).softmax(1)[0]

    def and_known(logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        return calibrate(logits), known.margins(known(codes, logits).mean(0, keepdim=True))[0] >= 0

    if known is None:
        return _traced(_Function(calibrate), [example], ["logits"], ["probabilities"])
    codes = torch.zeros(count, len(known.mean))
    return _traced(_Function(and_known, known.cpu()), [example, codes], ["logits", "codes"], ["probabilities", "known"])


def _metadata(config: ModelConfig) -> dict[str, str]:
    """Return the model's metadata; lists are JSON, in ASCII, as labels may be names of files in any encoding."""
    return {
        "labels": json.dumps(config.labels),
        "variant": config.variant,
        "input": json.dumps([3, config.preprocessing.input_side, config.preprocessing.input_side]),
        "preprocessing": config.preprocessing.model_dump_json(),
        "temperature": str(config.temperature),
        "onnxruntime": f">={ONNXRUNTIME}",
        "version": alexnet.__version__,
        "sha256": config.sha256,
    }


def _traced(
    module: nn.Module, examples: list[Tensor], names: list[str], results: list[str], sizes: list[str] | None = None
) -> onnx.ModelProto:
    """Let PyTorch trace `module` from inputs to outputs of these names; the first axes of inputs may have any of `sizes`."""
    dynamic = {axis: torch.export.Dim(size, min=1, max=1 << 20) for axis, size in enumerate(sizes or ())}
    with _silence(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(examples),
            dynamo=True,
            dynamic_shapes=(dynamic,) * len(examples),
            input_names=names,
            output_names=results,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.ir_version = IR
    return model


def _chained(first: onnx.ModelProto, **others: onnx.ModelProto) -> onnx.ModelProto:
    """Join models: the inputs of each are outputs of the one before. Names inside the others get a prefix.

    Only `first` may contain If nodes: onnx renames nothing inside them.
    """
    model = first
    for name, following in others.items():
        following = compose.add_prefix(following, f"{name}/", rename_inputs=False, rename_outputs=False)
        names = [given.name for given in following.graph.input]
        model = compose.merge_models(model, following, [(name, name) for name in names])
    return model


def _tidied(model: onnx.ModelProto, metadata: dict[str, str]) -> onnx.ModelProto:
    """Replace PyTorch's metadata for each node, including paths on this machine, with `metadata`; keep one operator set."""
    graph = model.graph
    model.ir_version = IR
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    for part in (model, *_parts(graph)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.name = model.producer_name = "alexnet"
    model.producer_version = metadata["version"]
    helper.set_model_props(model, metadata)
    return model


def _parts(graph: onnx.GraphProto) -> Iterator[Any]:
    """Yield a graph and all nested graphs, including the branches of If nodes."""
    yield from (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("g"):
            yield from _parts(attribute.g)


def quantized(
    model: onnx.ModelProto, images: Iterator[NDArray[Any]], preprocessing: Preprocessing, folder: Path
) -> onnx.ModelProto:
    """Quantize a network to 8 bits, with a scale for each channel of the weights (QDQ), calibrated on `images`, S S 3 each.

    The first convolution and the last layer stay in float32: they have few weights and lose the most. Temporary files are made
    in `folder`.
    """
    before, after = folder / "before.onnx", folder / "after.onnx"
    onnx.save(model, before)
    inputs = (to_input(torch.from_numpy(image)[None], preprocessing).contiguous().numpy() for image in images)  # 1 3 I I
    reader = ({"images": x} for x in inputs)
    weighted = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    with _silence():
        quantize_static(
            before,
            after,
            SimpleNamespace(get_next=lambda: next(reader, None)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv", "Relu", "MaxPool", "Gemm"],  # norms lose more accuracy than they save time
            nodes_to_exclude=[weighted[0], weighted[-1]],
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},  # only what their ReLUs let through
        )
    return onnx.load(after)


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the weights of dense layers in 8 bits, with a scale for each unit, and those of convolutions in 16.

    That is a quarter of the bytes. A runtime makes float32 of them as it loads the file, and computes as before.
    """
    graph, nodes = model.graph, []
    for weight in [each for each in graph.initializer if len(each.dims) > 1 and each.data_type == onnx.TensorProto.FLOAT]:
        values, name = numpy_helper.to_array(weight), weight.name
        graph.initializer.remove(weight)
        if values.ndim > 2:
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{name}/16"))
            nodes.append(helper.make_node("Cast", [f"{name}/16"], [name], to=onnx.TensorProto.FLOAT))
            continue
        scale = np.maximum(np.abs(values).max(1, keepdims=True), np.finfo(np.float32).tiny) / 127
        graph.initializer.append(numpy_helper.from_array(np.round(values / scale).astype(np.int8), f"{name}/8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
        nodes.append(helper.make_node("Cast", [f"{name}/8"], [f"{name}/levels"], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}/levels", f"{name}/scale"], [name]))
    later = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *later])
    return model


@contextmanager
def _silence() -> Iterator[None]:
    """Hide log messages and warnings of onnx and PyTorch."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
