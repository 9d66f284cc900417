"""Export a run for OpenVINO, Intel's runtime, and compare the files with PyTorch before they are kept."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.data.dataset import Dataset
from alexnet.errors import AlexNetError, RunError
from alexnet.export.onnx import COMPARED, Model, Result, compared, library, synthetic, temporary_folder, validation
from alexnet.files import MADE_BY, refuse_overwrite, sha256, write_json
from alexnet.network.alexnet import AlexNet
from alexnet.progress import say
from alexnet.run import ModelConfig


def export_openvino(
    network: AlexNet, config: ModelConfig, dataset: Dataset | None, path: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write a network to `path`, .xml, and its weights to .bin beside it, if OpenVINO agrees; see `Run.export_openvino`."""
    openvino, onnx_model = _openvino(), library()
    weights, comparison = path.with_suffix(".bin"), path.with_name(f"{path.name}.json")
    if path.suffix != ".xml":
        raise AlexNetError(f"{path}: OpenVINO's files end in .xml, and the weights go to .bin beside it")
    refuse_overwrite(path, overwrite)
    if weights.exists() and not path.exists() and not overwrite:
        raise RunError(f"{weights} exists and does not belong to a file of alexnet's: give another name, or --overwrite")
    with temporary_folder(path) as folder:
        say(f"Writing {path.name}")
        file = folder / path.name
        traced = onnx_model.network_model(network, config.preprocessing, codes=config.known is not None)
        converted = openvino.convert_model(onnx_model.save(traced, config, folder / "float.onnx", bare=False))
        converted.set_friendly_name(MADE_BY)
        openvino.save_model(converted, file, compress_to_fp16=True)
        models = {"openvino": _model(openvino, file)}
        compared(network, config, models, synthetic(), path, who="OpenVINO")
        samples = synthetic() if dataset is None else validation(dataset, COMPARED)
        result = {
            "file": str(path),
            "openvino": openvino.__version__.split("-")[0],
            "bytes": file.stat().st_size + file.with_suffix(".bin").stat().st_size,
            "sha256": sha256(file.with_suffix(".bin")),
            **compared(network, config, models, samples, path, who="OpenVINO"),
        }
        file.with_suffix(".bin").replace(weights)
        file.replace(path)
    write_json(comparison, result)
    return result


def _openvino() -> Any:
    """Return the library; AlexNetError if it is not installed."""
    # It would report each import to its maker. Another program's import stays.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise AlexNetError(f"exporting for OpenVINO needs it ({error}): pip install --no-deps openvino") from error
    return openvino


def _model(openvino: Any, file: Path) -> Model:
    """Return the model in a file, in float32, as it computes on a processor without bfloat16."""
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(file, "CPU", hints).create_infer_request()

    def run(image: NDArray[np.uint8]) -> Result:
        found = request.infer({"image": image})
        known = bool(found["known"]) if "known" in found.names() else None
        return np.asarray(found["probabilities"], np.float64), known

    return run
