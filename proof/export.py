"""Export a run for onnxruntime and OpenVINO, and give the files and `predict` the same 500 unusual images: they must agree.

    python -m proof.export RUN [--images 500]

Each image is written to a file of its kind and decoded as `predict` decodes files; its pixels, H W 3, go to all. `predict`
computes in the precision of the run, and also in float32, as the files do. Required: probabilities within 0.01 for 99 % of the
images, and the same first label whenever the first leads by more than 0.02. Prints tables and a line of JSON; the exit code is
1 if a requirement is not met. Without OpenVINO, only the ONNX file is compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from proof.pictures import encoded

import alexnet
from alexnet.data.decode import decode
from alexnet.errors import AlexNetError

CLOSE, LEAD, SHARE = 0.01, 0.02, 0.99


def with_orientation(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Return a JPEG with one of the eight EXIF orientations."""
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    return encoded(image, "JPEG", exif=exif)


def with_16_bits(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Return a grey PNG."""
    levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(levels + rng.integers(0, 200, levels.shape, dtype=np.uint16) % 256), "PNG")


def transparent(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Return a PNG with random transparency."""
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(rng.integers(0, 256, (image.height, image.width), dtype=np.uint8)))
    return encoded(image, "PNG")


def sized(widths: tuple[int, int], heights: tuple[int, int]) -> Make:
    """Return a function that makes a PNG of random size within these bounds."""
    return lambda image, rng: encoded(
        image.resize((int(rng.integers(*widths, endpoint=True)), int(rng.integers(*heights, endpoint=True)))), "PNG"
    )


Model = Callable[[NDArray[np.uint8]], NDArray[np.float64]]  # for an image, H W 3: probabilities in the order of the labels
Make = Callable[[Image.Image, np.random.Generator], bytes]
KINDS: dict[str, Make] = {
    "EXIF": with_orientation,
    "CMYK": lambda image, _: encoded(image.convert("CMYK"), "JPEG"),
    "grey": lambda image, _: encoded(image.convert("L"), "PNG"),
    "palette": lambda image, _: encoded(image.convert("P"), "GIF"),
    "16 bits": with_16_bits,
    "transparent": transparent,
    "tiny": sized((1, 12), (1, 12)),
    "any size": sized((13, 900), (13, 900)),
    "huge": sized((2000, 5000), (2000, 5000)),
    "1 wide": sized((1, 1), (1, 1199)),
    "1 high": sized((1, 1199), (1, 1)),
}


def onnx_model(run: alexnet.Run, folder: Path) -> Model:
    """Return the run in onnxruntime."""
    run.export(folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def openvino_model(run: alexnet.Run, folder: Path) -> Model:
    """Return the run in OpenVINO, in float32."""
    run.export_openvino(folder / "model.xml")
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(folder / "model.xml", "CPU", hints)
    return lambda image: np.array(model({"image": image})["probabilities"])


def predicting(run: alexnet.Run) -> Model:
    """Return `predict`."""

    def probabilities(image: NDArray[np.uint8]) -> NDArray[np.float64]:
        [answer] = run.predict([image], top=len(run.labels))
        found = {guess["label"]: guess["probability"] for guess in answer["predictions"]}
        return np.array([found[label] for label in run.labels])

    return probabilities


def exported(run: alexnet.Run, folder: Path) -> dict[str, Model]:
    """Return the exported models by the name of their runtime."""
    models = {"onnxruntime": onnx_model(run, folder)}
    try:
        models["OpenVINO"] = openvino_model(run, folder)
    except AlexNetError as error:
        print(f"skipped: {error}")
    return models


def main() -> int:
    """Export, compare and print; return the exit code."""
    parser = argparse.ArgumentParser(description="Compare exports with predict; see the file's head.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    run, plain = alexnet.load(options.run), alexnet.load(options.run)
    plain.config = plain.config.model_copy(update={"precision": "float32"})
    rng, table = np.random.default_rng(2012), run.dataset(split="val")[0].table
    photos, kinds = [decode(table.source(row)) for row in table.rows("val")[:50]], list(KINDS)
    with tempfile.TemporaryDirectory() as folder:
        theirs, file = exported(run, Path(folder)), Path(folder) / "image"
        models = {"in float32": predicting(plain), "as the run predicts": predicting(run), **theirs}
        answers: dict[str, list[NDArray[np.float64]]] = {name: [] for name in models}
        for i in range(options.images):
            file.write_bytes(KINDS[kinds[i % len(kinds)]](photos[i % len(photos)], rng))
            image = np.asarray(decode(file))
            for name, model in models.items():
                answers[name].append(model(image))
    rows = {name: np.stack(found) for name, found in answers.items()}
    results = {name: table_of(name, rows[name], [rows[ours] for ours in list(models)[:2]], kinds) for name in theirs}
    print(json.dumps({"proof": "export", "run": str(options.run), "images": options.images, **results}))
    return int(any(each["close"] < SHARE or each["same"] < 1 for found in results.values() for each in found.values()))


def table_of(
    name: str, theirs: NDArray[np.float64], ours: list[NDArray[np.float64]], kinds: list[str]
) -> dict[str, dict[str, float]]:
    """Print how a model compares with `predict` on each kind of image, and return how it does on all."""
    print(f"{name:12} images  in float32: farthest, close, same label   as the run predicts: farthest, close, same label")
    found: list[dict[str, float]] = []
    for start, kind in [*enumerate(kinds), (None, "all")]:
        some = slice(None) if start is None else slice(start, None, len(kinds))
        found = [figures(theirs[some], wanted[some]) for wanted in ours]
        cells = ("{farthest:22.5f}  {close:7.1%}  {same:7.1%}     ".format(**row) for row in found)
        print(f"{kind:12} {len(theirs[some]):6}" + "".join(cells))
    return dict(zip(("float32", "as_run"), found, strict=True))


def figures(exported: NDArray[np.float64], ours: NDArray[np.float64]) -> dict[str, float]:
    """Return the largest difference, the fraction that is close, and the fraction of clear images with the same first label."""
    difference = np.abs(exported - ours).max(1)
    ordered = np.sort(ours)
    clear = ordered[:, -1] - ordered[:, -2] > LEAD
    same = (exported.argmax(1) == ours.argmax(1))[clear]
    return {
        "farthest": float(difference.max()),
        "close": float((difference <= CLOSE).mean()),
        "same": float(same.mean()),
    }


if __name__ == "__main__":
    sys.exit(main())
