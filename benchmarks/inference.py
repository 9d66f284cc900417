"""Throughput of evaluation and latency of one image, alternating with onnxruntime and OpenVINO, in one process.

Ours is `predict_logits`, as `alexnet evaluate` and `alexnet predict` call it: from uint8 images to logits, in the precision
that suits the machine. The peers run the same network, exported in float32, on as many threads, on the same preprocessed
inputs; OpenVINO computes in bfloat16 where ours does. `network alone` leaves the preprocessing out. Required: at least the
throughput of the peers, at most 1.2 times the latency of onnxruntime, and at most the latency of OpenVINO. Without OpenVINO,
the rest is measured. The same network in 8 bits, as `export --int8` quantises it, is timed in both without being required.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks.turns import in_turn, ratios, skip, spread, timed
from numpy.typing import NDArray
from torch import Tensor, nn

import alexnet
from alexnet.data.preprocessing import to_input
from alexnet.inference.evaluate import BATCH
from alexnet.inference.forward import predict_logits
from alexnet.network.device import keep_freed_memory, resolve_precision, to_device
from alexnet.recipe import Preprocessing

CLASSES = 10
ROUNDS = {BATCH: 3, 32: 5, 1: 15}  # by the number of images in a batch
# consecutive calls of each before the next takes its turn: threads that just waited for a peer wake slowly
IN_A_ROW = {BATCH: 1, 32: 1, 1: 20}
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # images N 3 I I -> logits, N x classes


class Case(NamedTuple):
    """Pixels per side of the stored images and of the network's input, and the factor by which the network upscales."""

    stored: int
    input: int
    upscale: int = 1


class Peer(NamedTuple):
    """A peer: how to prepare it for batches of one size, the speed of ours relative to it that is wanted, its precision."""

    prepare: Callable[[int], Run]
    wanted: dict[int, str]
    precision: str = "float32"


# fraction of the largest logit by which rounding may change one
ROUNDING = {"float32": 0.0, "bfloat16": 1 / 20, "int8": 1 / 5}


CASES = {"cifar10 at 227": Case(227, 227), "cifar10 at 128 from 32, as fast has it": Case(32, 128, upscale=4)}


def export(network: nn.Module, size: int, path: Path) -> None:
    """Export the network as ONNX: float32, any number of images."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example, many = torch.randn(2, 3, size, size), torch.export.Dim("images", min=1, max=4 * BATCH)
        torch.onnx.export(
            network, (example,), path, dynamo=True, input_names=["images"], dynamic_shapes=({0: many},), verbose=False
        )


def quantize(path: Path, size: int) -> Path:
    """Quantize an exported network on noise, as `export --int8` does on photos, and return the file."""
    import onnx

    from alexnet.export.model import quantized

    noise = np.random.default_rng(0).integers(0, 256, (16, size, size, 3), dtype=np.uint8)
    small = path.with_name("int8.onnx")
    preprocessing = Preprocessing(cache_size=size, fit="crop", input=size)
    onnx.save(quantized(onnx.load(path), iter(noise), preprocessing, path.parent), small)
    return small


def session(path: Path, threads: int) -> Any:
    """Return an onnxruntime session on the CPU; its threads do not spin between runs, while others compute."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnxruntime_peer(path: Path, threads: int, precision: str = "float32") -> Peer:
    """Return onnxruntime with an exported network."""
    found = session(path, threads)
    [name] = [given.name for given in found.get_inputs()]
    wanted = {BATCH: "1 or more", 1: "0.83 or more"} if precision == "float32" else {}
    return Peer(lambda count: lambda images: found.run(None, {name: images})[0], wanted, precision)


def openvino_peer(path: Path, threads: int, precision: str) -> Peer:
    """Return OpenVINO with an exported network, compiled for each batch size.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report each import to Intel
    import openvino

    def prepare(count: int) -> Run:
        core = openvino.Core()
        network = core.read_model(path)
        network.reshape([count, *network.inputs[0].partial_shape[1:]])
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        hints["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bfloat16" else "f32"
        request = core.compile_model(network, "CPU", hints).create_infer_request()
        return lambda images: request.infer([images])[0]

    return Peer(prepare, {} if precision == "int8" else {BATCH: "1 or more", 1: "1 or more"}, precision)


def compare(network: nn.Module, peers: dict[str, Peer], case: Case, count: int) -> dict[str, float]:
    """Time batches of `count` images in turn, print a table, and return our speed relative to each peer."""
    preprocessing = Preprocessing(
        cache_size=case.stored, input=case.input, upscale=case.upscale, fit="crop", reduced_decode=True, resize="bilinear"
    )
    images = torch.randint(0, 256, (count, case.stored, case.stored, 3), dtype=torch.uint8)

    def planes() -> NDArray[np.float32]:
        large: Tensor = nn.functional.interpolate(
            to_input(images, preprocessing), scale_factor=case.upscale, mode="nearest-exact"
        )
        return large.contiguous().numpy()

    ready = planes()
    ways: dict[str, Callable[[], NDArray[np.float32]]] = {
        "ours": lambda: predict_logits(network, images, preprocessing),
        "ours, float32": lambda: predict_logits(network, images, preprocessing, "float32"),
    }
    expected = predict_logits(network, images, preprocessing, "float32")
    for name, peer in peers.items():
        run = peer.prepare(count)
        off = max(1e-4, ROUNDING[peer.precision] * np.abs(expected).max())
        np.testing.assert_allclose(run(ready), expected, rtol=1e-3, atol=off)
        ways[name] = lambda run=run: run(planes())  # type: ignore[misc]
        if count == 1:
            ways[f"{name}, network alone"] = lambda run=run: run(ready)  # type: ignore[misc]
    times = in_turn({way: timed(work, IN_A_ROW[count]) for way, work in ways.items()}, ROUNDS[count])
    found = {}
    for way, seconds in times.items():
        each = ratios(seconds, times["ours"])
        found[way] = statistics.median(each)
        low, middle, high = (f(seconds) for f in (min, statistics.median, max))
        pace = f"{middle * 1e3:6.1f} ms ({low * 1e3:.1f} to {high * 1e3:.1f})"
        if count > 1:
            pace = f"{count / middle:6.1f} images/s ({count / high:.1f} to {count / low:.1f})"
        wanted = f", wanted {peers[way].wanted[count]}" if way in peers and count in peers[way].wanted else ""
        print(f"    {way:26} {pace}" + ("" if way == "ours" else f"; ours is {spread(each)} times as fast{wanted}"))
    return found


def main() -> None:
    """Measure every case."""
    keep_freed_memory()
    torch.manual_seed(0)
    threads, device, results = torch.get_num_threads(), torch.device("cpu"), {}
    precision = resolve_precision(device, "auto")
    network = alexnet.AlexNet("cifar10", CLASSES)
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            export(network, case.input, path)
            to_device(network, device)
            print(f"{name}, {threads} threads, {precision}")
            small = quantize(path, case.input)
            peers = {"onnxruntime": onnxruntime_peer(path, threads)}
            peers["onnxruntime, int8"] = onnxruntime_peer(small, threads, "int8")
            try:
                peers["OpenVINO"] = openvino_peer(path, threads, precision)
                peers["OpenVINO, int8"] = openvino_peer(small, threads, "int8")
            except ImportError:
                print("  skipped: OpenVINO: pip install --no-deps -c constraints.txt openvino")
            for count in ROUNDS:
                print("  one image" if count == 1 else f"  batches of {count}")
                results[f"{name}, {count}"] = compare(network, peers, case, count)
    print(json.dumps({"benchmark": "inference", "threads": threads, "precision": precision, **results}))


if __name__ == "__main__":
    os.environ["ORT_DISABLE_ALL_LOGGING"] = "1"
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        skip(f"no {error.name} here: pip install -c constraints.txt onnx onnxscript onnxruntime")
    main()
