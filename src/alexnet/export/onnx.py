"""Export a run as an ONNX file, which is compared with PyTorch before it is kept."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from alexnet.data.dataset import Dataset
from alexnet.data.decode_pool import Answer, decode_all
from alexnet.data.preprocessing import pixels, to_input
from alexnet.errors import AlexNetError, RunError, counted, error_reason
from alexnet.files import HOST, refuse_overwrite, remove_leftovers, sha256, write_output
from alexnet.inference.forward import compute
from alexnet.inference.metrics import log_probabilities
from alexnet.network.alexnet import AlexNet
from alexnet.progress import say, track
from alexnet.run import ModelConfig

COMPARED, COMPARED_INT8 = 500, 2000  # validation images at most; int8 costs accuracy, which more images measure better
OLDEST_PYTORCH = (2, 11)  # 2.9 cannot trace images of any size
CALIBRATION = 256  # training images
CLOSE = 0.01  # largest difference of probabilities that counts as equal
# Heights and widths.
SYNTHETIC_SIZES = [(1, 1), (1, 90), (90, 1), (2, 3), (40, 40), (64, 48), (333, 500), (700, 37), (1200, 900)]

Result = tuple[NDArray[np.float64], bool | None]  # calibrated probabilities, and whether the image is known
Model = Callable[[NDArray[np.uint8]], Result]  # for an image, H W 3
# Images to compare on: their name, at most how many, and the images, H W 3 uint8, each with its target or None.
Samples = tuple[str, int, Iterator[tuple[NDArray[np.uint8], int | None]]]


def export(
    network: AlexNet,
    config: ModelConfig,
    dataset: Dataset | None,
    path: Path,
    *,
    bare: bool = False,
    int8: bool = False,
    compact: bool = False,
    heat: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a network as ONNX to `path` if it agrees with PyTorch, and the comparison to `<path>.json`; see `Run.export`.

    The network is written in float32. It is compared on the dataset's validation images; on synthetic images if that is None.
    Unless `bare`, the file contains preprocessing and calibration; `int8` does not quantize the preprocessing.
    `compact` stores the weights in 8 and 16 bits; with `heat`, Grad-CAM is another output.
    """
    onnx_model = library()
    if int8 and dataset is None:
        raise RunError("int8 needs training images to calibrate on, and the run's dataset was not found: leave out --int8")
    comparison = path.with_name(f"{path.name}.json")
    for file in (path, comparison):
        refuse_overwrite(file, overwrite)
    with temporary_folder(path) as folder:
        say(f"Writing {path.name}")
        codes = config.known is not None and not bare
        traced = onnx_model.network_model(network, config.preprocessing, codes=codes, heat=heat)
        if compact:
            traced = onnx_model.compact(traced)
        files = {"onnx": onnx_model.save(traced, config, folder / "float.onnx", bare=bare)}
        if int8 and dataset is not None:
            images = track(_training(dataset), "Calibrating", CALIBRATION)
            small = onnx_model.quantized(traced, images, config.preprocessing, folder)
            files["int8"] = onnx_model.save(small, config, folder / "int8.onnx", bare=bare)
        built = files["int8" if int8 else "onnx"]
        samples = synthetic() if dataset is None else validation(dataset, COMPARED_INT8 if int8 else COMPARED)
        models = {name: _onnx_model(file, config) for name, file in files.items()}
        result = {
            "file": str(path),
            "bare": bare,
            "int8": int8,
            "opset": onnx_model.OPSET,
            "ir_version": onnx_model.IR,
            "onnxruntime": f">={onnx_model.ONNXRUNTIME}",
            "bytes": built.stat().st_size,
            "sha256": sha256(built),
            **({"float_bytes": files["onnx"].stat().st_size} if int8 else {}),
            **compared(network, config, models, samples, path, int8=int8, views=1 if bare else None),
        }
        write_output(path, built.replace, overwrite)
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    write_output(comparison, partial(Path.write_text, data=text, encoding="utf-8", errors="backslashreplace"), overwrite)
    return result


def library() -> ModuleType:
    """Return `export.model`; AlexNetError if what it needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

        from alexnet.export import model as onnx_model
    except ImportError as error:
        raise AlexNetError(f"a library for exporting is missing ({error}): pip install onnx onnxscript onnxruntime") from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_PYTORCH:
        oldest = ".".join(map(str, OLDEST_PYTORCH))
        raise AlexNetError(f"exporting needs PyTorch {oldest} or later, and this is {torch.__version__}")
    return onnx_model


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside `path`, and remove those that killed processes have left."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, ".export.*.part")
        with tempfile.TemporaryDirectory(prefix=".export.", suffix=f".{HOST}-{os.getpid()}.part", dir=path.parent) as name:
            yield Path(name)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error_reason(error)}") from error


def _training(dataset: Dataset) -> Iterator[NDArray[Any]]:
    """Return a fixed sample of the training images as in batches: S S 3."""
    images = dataset.images("train")
    order = np.random.default_rng(0).permutation(len(images))[:CALIBRATION]
    return (images.take(order[i : i + 1]).images[0].numpy() for i in range(len(order)))


def validation(dataset: Dataset, most: int) -> Samples:
    """Return validation images at their original size, so that preprocessing is compared too."""
    table, rows = dataset.table, dataset.table.rows("val")
    rows = rows[:: -(-len(rows) // most)]

    def images() -> Iterator[tuple[NDArray[np.uint8], int | None]]:
        sources = (table.source(row) for row in rows)
        with closing(decode_all("pixels", sources, 1, cache_size="full")) as answers:
            for (_, answer), row in zip(answers, rows, strict=True):
                if isinstance(answer, Answer):  # otherwise too large to decode at full size
                    yield answer.pixels, int(table.targets[row])

    return f"{table.name}, validation", len(rows), images()


def synthetic() -> Samples:
    """Return smooth random images of various sizes."""
    rng = np.random.default_rng(0)

    def smooth(height: int, width: int) -> NDArray[np.uint8]:
        coarse = rng.integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height)))

    sizes = SYNTHETIC_SIZES * 4
    return "synthetic images", len(sizes), ((smooth(*size), None) for size in sizes)


def compared(
    network: AlexNet,
    config: ModelConfig,
    models: dict[str, Model],
    samples: Samples,
    path: Path,
    *,
    int8: bool = False,
    views: int | None = None,
    who: str = "onnxruntime",
) -> dict[str, Any]:
    """Compare the last of `models` with the network on the same images; time both, and measure their accuracy."""
    last, models = list(models)[-1], {"torch": _torch_model(network, config, views)} | models
    answers: dict[str, list[Result]] = {name: [] for name in models}
    seconds = dict.fromkeys(models, 0.0)
    source, most, images = samples
    targets = []
    for image, target in track(images, "Comparing", most):
        targets.append(target)
        for name, run in models.items():
            start = time.perf_counter()
            answers[name].append(run(image))
            seconds[name] += time.perf_counter() - start
    if not targets:
        raise RunError(f"{path} was not written: no image to compare on, as none of {source} decodes at full size")
    rows = {name: np.stack([row for row, _ in answers[name]]) for name in models}
    top1 = {name: float((row.argmax(1) == targets).mean()) for name, row in rows.items()}
    known = [
        ours == theirs for (_, ours), (_, theirs) in zip(answers["torch"], answers[last], strict=True) if theirs is not None
    ]
    return {
        "compared_on": source,
        "images": len(targets),
        **agreement(rows["torch"], rows[last], path, int8=int8, who=who),
        "same_known": float(np.mean(known)) if known else None,
        "images_per_second": {name: len(targets) / seconds[name] for name in models},
        "top1": None if None in targets else top1,
    }


def agreement(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], path: Path, *, int8: bool, who: str = "onnxruntime"
) -> dict[str, float]:
    """Compare probabilities, N x classes, and raise RunError if they disagree.

    With `int8` they may differ, but the first label must be the same for 90 % of the images where it is clear.
    """
    ordered = np.sort(np.pad(ours, ((0, 0), (1, 0))))
    lead, same = ordered[:, -1] - ordered[:, -2], ours.argmax(1) == theirs.argmax(1)
    difference = np.abs(ours - theirs).max(1)
    close, sure = float((difference <= CLOSE).mean()), lead > (0.2 if int8 else 0.02)
    lost = (sure & ~same).sum() > (0.1 * sure.sum() if int8 else 0)
    if not np.isfinite(theirs).all() or lost or (close < 0.99 and not int8):
        how = f"probabilities differ by up to {difference.max():.3f}, same first label for {same.mean():.1%}"
        raise RunError(f"{path} was not written: {who} disagrees with PyTorch, {how} of {counted(len(same), 'image')}")
    return {"largest_difference": float(difference.max()), "close": close, "same_top1": float(same.mean())}


def _torch_model(network: AlexNet, config: ModelConfig, views: int | None) -> Model:
    def run(image: NDArray[np.uint8]) -> Result:
        batch = torch.from_numpy(pixels(image, config.preprocessing).copy())[None]
        logits, scores = compute(network, batch, config.preprocessing, "float32", views, config.known)
        return _calibrated(logits[0], config), None if config.known is None else bool(config.known.margins_of(scores)[0] >= 0)

    return run


def _onnx_model(file: Path, config: ModelConfig) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name, results = session.get_inputs()[0].name, [each.name for each in session.get_outputs() if each.name != "heat"]

    def run(image: NDArray[np.uint8]) -> Result:
        if name == "image":
            probabilities, *known = session.run(results, {name: image})
            return np.asarray(probabilities, np.float64), bool(known[0]) if known else None
        batch = to_input(torch.from_numpy(pixels(image, config.preprocessing).copy())[None], config.preprocessing)
        return _calibrated(session.run(None, {name: batch.contiguous().numpy()})[0][0], config), None

    return run


def _calibrated(logits: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float64]:
    return np.asarray(np.exp(log_probabilities(logits[None], config.temperature)[0]))
