"""A run as an ONNX file, for onnxruntime and the like; it is compared with PyTorch before it is called done."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax

from alexnet.data.dataset import Dataset
from alexnet.data.decode_pool import Answer, decoded
from alexnet.data.preprocessing import fit_image, stored_pixels, to_input
from alexnet.errors import AlexNetError, RunError, error_reason
from alexnet.files import HOST, refuse_overwrite, remove_leftovers, sha256, write_output
from alexnet.inference.forward import predict_logits
from alexnet.network.alexnet import AlexNet
from alexnet.progress import say, track
from alexnet.run import ModelConfig

COMPARED, MEASURED = 500, 2000  # images of the validation split at most; with int8, whose accuracy is in question
CALIBRATION = 256  # training images
CLOSE = 0.01  # probabilities that differ by no more are alike
MADE_UP = [(1, 1), (1, 90), (90, 1), (2, 3), (40, 40), (64, 48), (333, 500), (700, 37), (1200, 900)]  # heights and widths

Way = Callable[[NDArray[np.uint8]], NDArray[np.float64]]  # from an image, H W 3, to calibrated probabilities


@dataclass(frozen=True, eq=False)
class Samples:
    """`images` to compare on, H W 3 uint8, each with its target or None; at most `count` come."""

    name: str
    count: int
    images: Iterator[tuple[NDArray[np.uint8], int | None]]


def export(
    network: AlexNet,
    config: ModelConfig,
    dataset: Dataset | None,
    place: Path,
    *,
    bare: bool = False,
    int8: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a network as ONNX to `place`, once it agrees with PyTorch, and what was compared to `<place>.json`.

    Args:
        network: on any device; it is written in float32.
        config: of the run.
        dataset: the run's, with a validation split; None: made-up images are compared.
        place: the file; its folder is made.
        bare: the network alone, from `images`, N 3 I I float32 as `to_input` returns them, to `logits`, N x classes. Else
            all of it, from `image`, H W 3 uint8 of any size, to `probabilities`, one a class, calibrated.
        int8: compute the network, but not what prepares images for it, in whole numbers of 8 bits.
        overwrite: replace files at `place` that this program has not made, too.

    Returns:
        `{"file", "bare", "int8", "opset", "ir_version", "onnxruntime", "bytes", "sha256", "compared_on", "images",
        "largest_difference", "close", "same_top1", "images_per_second", "top1"}`: `onnxruntime` is the oldest version that
        can read the file, as `">=1.17"`. `close` and `same_top1` are shares of images whose probabilities and first label are
        PyTorch's. The last two are by what computes (`torch`, `onnx`, `int8`), one image at a time; `top1` is None without a
        dataset. With `int8` also `"float_bytes"`.

    Raises:
        AlexNetError: onnx, onnxscript or onnxruntime is not installed.
        RunError: the file says otherwise than PyTorch; `place` cannot be written, or is a user's own file; no dataset to
            calibrate `int8` on.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

        from alexnet.export import graph as onnx_graph
        from alexnet.export import model as onnx_model
    except ImportError as error:
        raise AlexNetError(f"exporting lacks a library ({error}): pip install onnx onnxscript onnxruntime") from error
    if int8 and dataset is None:
        raise RunError("int8 needs training images to calibrate on, and the run's dataset is not at hand: leave it out")
    notes = place.with_name(f"{place.name}.json")
    for file in (place, notes):
        refuse_overwrite(file, overwrite)
    with _workshop(place) as folder:
        say(f"Writing {place.name}")
        traced = onnx_model.network_model(network, config.preprocessing)
        files = {"onnx": onnx_model.save(traced, config, folder / "float.onnx", bare=bare)}
        if int8 and dataset is not None:
            images = track(_training(dataset), "Calibrating", CALIBRATION)
            small = onnx_model.quantised(traced, images, config.preprocessing, folder)
            files["int8"] = onnx_model.save(small, config, folder / "int8.onnx", bare=bare)
        built = files["int8" if int8 else "onnx"]
        samples = _made_up() if dataset is None else _validation(dataset, MEASURED if int8 else COMPARED)
        found = {
            **{"file": str(place), "bare": bare, "int8": int8},
            **{"opset": onnx_graph.OPSET, "ir_version": onnx_graph.IR, "onnxruntime": f">={onnx_graph.ONNXRUNTIME}"},
            **{"bytes": built.stat().st_size, "sha256": sha256(built)},
            **({"float_bytes": files["onnx"].stat().st_size} if int8 else {}),
            **_compared(network, config, files, samples, place),
        }
        write_output(place, built.replace, overwrite)
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    write_output(notes, partial(Path.write_text, data=text, encoding="utf-8", errors="backslashreplace"), overwrite)
    return found


@contextmanager
def _workshop(place: Path) -> Iterator[Path]:
    """Make a folder beside `place` for the time being, and remove those that killed processes have left.

    Raises:
        RunError: it, or what is done in it, cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place.parent, ".export.*.part")
        with tempfile.TemporaryDirectory(prefix=".export.", suffix=f".{HOST}-{os.getpid()}.part", dir=place.parent) as name:
            yield Path(name)
    except OSError as error:
        raise RunError(f"cannot write {place}: {error_reason(error)}") from error


def _training(dataset: Dataset) -> Iterator[NDArray[Any]]:
    """Yield some training images, the same ones each time, as batches hold them: S S 3."""
    images = dataset.images("train")
    order = np.random.default_rng(0).permutation(len(images))[:CALIBRATION]
    return (images.take(order[i : i + 1]).images[0].numpy() for i in range(len(order)))


def _validation(dataset: Dataset, most: int) -> Samples:
    """Return images of the validation split as they are in their files, so that fitting them is compared too."""
    table, rows = dataset.table, dataset.table.rows("val")
    rows = rows[:: -(-len(rows) // most)]

    def images() -> Iterator[tuple[NDArray[np.uint8], int | None]]:
        sources = (table.source(row) for row in rows)
        whole: dict[str, Any] = {"cache_size": "full", "fit": "crop", "filter": "bicubic", "reduced_decode": False}
        with closing(decoded("pixels", sources, 1, **whole)) as answers:
            for (_, answer), row in zip(answers, rows, strict=True):
                if isinstance(answer, Answer):  # some are too large to decode whole
                    yield answer.pixels, int(table.targets[row])

    return Samples(f"{table.name}, validation", len(rows), images())


def _made_up() -> Samples:
    """Return clouds of colour in sizes of all kinds."""
    chance = np.random.default_rng(0)

    def cloud(height: int, width: int) -> NDArray[np.uint8]:
        few = chance.integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(few).resize((width, height)))

    sizes = MADE_UP * 4
    return Samples("made-up images", len(sizes), ((cloud(*size), None) for size in sizes))


def _compared(network: AlexNet, config: ModelConfig, files: dict[str, Path], samples: Samples, place: Path) -> dict[str, Any]:
    """Run the files, of which the last is in question, and the network on the same images; return what `export` tells.

    Raises:
        RunError: they say otherwise, or there are no images.
    """
    ways: dict[str, Way] = {"torch": lambda image: _torch_probabilities(network, config, image)}
    ways |= {name: _onnx_probabilities(file, config) for name, file in files.items()}
    answers: dict[str, list[NDArray[np.float64]]] = {way: [] for way in ways}
    seconds = dict.fromkeys(ways, 0.0)
    targets = []
    for image, target in track(samples.images, "Comparing", samples.count):
        targets.append(target)
        for way, run in ways.items():
            start = time.perf_counter()
            answers[way].append(run(image))
            seconds[way] += time.perf_counter() - start
    if not targets:
        raise RunError(f"{place} was not written, as no image is left to compare on: none of {samples.name} decodes whole")
    known = None not in targets
    found = {
        **{"compared_on": samples.name, "images": len(targets)},
        **agreement(np.stack(answers["torch"]), np.stack(answers[list(files)[-1]]), place, int8="int8" in files),
        "images_per_second": {way: len(targets) / seconds[way] for way in ways},
        "top1": {way: float((np.argmax(answers[way], 1) == targets).mean()) for way in ways} if known else None,
    }
    return found


def agreement(ours: NDArray[np.float64], theirs: NDArray[np.float64], place: Path, *, int8: bool) -> dict[str, float]:
    """Compare probabilities, N x classes; with `int8` they may differ, but not in most labels that are clear.

    Raises:
        RunError: they disagree.
    """
    ordered = np.sort(np.pad(ours, ((0, 0), (1, 0))))
    lead, same = ordered[:, -1] - ordered[:, -2], ours.argmax(1) == theirs.argmax(1)
    difference = np.abs(ours - theirs).max(1)
    close, sure = float((difference <= CLOSE).mean()), lead > (0.2 if int8 else 0.02)
    lost = (sure & ~same).sum() > (0.1 * sure.sum() if int8 else 0)
    if not np.isfinite(theirs).all() or lost or (close < 0.99 and not int8):
        raise RunError(
            f"{place} was not written, as onnxruntime says otherwise than PyTorch: probabilities differ by up to "
            f"{difference.max():.3f}, the first label is the same for {same.mean():.1%} of {len(same)} images"
        )
    return {"largest_difference": float(difference.max()), "close": close, "same_top1": float(same.mean())}


def _torch_probabilities(network: AlexNet, config: ModelConfig, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the network's answer to an image, H W 3: as `predict` has it, but for float32."""
    preprocessing = config.preprocessing
    pixels = torch.from_numpy(fit_image(stored_pixels(image, preprocessing), preprocessing).copy())
    return _calibrated(predict_logits(network, pixels[None], preprocessing, "float32")[0], config)


def _onnx_probabilities(file: Path, config: ModelConfig) -> Way:
    """Return a function that runs a file on an image, H W 3, and gives its answer."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    preprocessing, given = config.preprocessing, session.get_inputs()[0].name

    def run(image: NDArray[np.uint8]) -> NDArray[np.float64]:
        if given == "image":
            probabilities: NDArray[np.float64] = session.run(None, {given: image})[0].astype(np.float64)
            return probabilities
        pixels = torch.from_numpy(fit_image(stored_pixels(image, preprocessing), preprocessing).copy())
        return _calibrated(session.run(None, {given: to_input(pixels[None], preprocessing).contiguous().numpy()})[0][0], config)

    return run


def _calibrated(logits: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = softmax(logits.astype(np.float64) / config.temperature)
    return probabilities
