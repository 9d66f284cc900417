"""Export a run, and give the file and `predict` the same 500 unusual images: their answers must agree.

    python -m proof.export RUN [--images 500]

Each image is written to a file of its kind and decoded as `predict` decodes files; its pixels, H W 3, go to both. `predict`
computes in the precision of the run, and also in float32, as the file does. Required: probabilities within 0.01 for 99 % of the
images, and the same first label whenever the first leads by more than 0.02. Prints a table and a line of JSON; the exit code is
1 if a requirement is not met.
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


def probabilities(run: alexnet.Run, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the probabilities from `predict` for an image, in the order of the labels."""
    [answer] = run.predict([image], top=len(run.labels))
    found = {guess["label"]: guess["probability"] for guess in answer["predictions"]}
    return np.array([found[label] for label in run.labels])


def main() -> int:
    """Export, compare and print; return the exit code."""
    parser = argparse.ArgumentParser(description="Compare an export with predict; see the file's head.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    run, plain = alexnet.load(options.run), alexnet.load(options.run)
    plain.config = plain.config.model_copy(update={"precision": "float32"})
    rng, table = np.random.default_rng(2012), run.dataset(split="val")[0].table
    photos, kinds = [decode(table.source(row)) for row in table.rows("val")[:50]], list(KINDS)
    answers: list[tuple[str, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]] = []
    with tempfile.TemporaryDirectory() as folder:
        model, file = Path(folder) / "model.onnx", Path(folder) / "image"
        run.export(model)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for i in range(options.images):
            kind = kinds[i % len(kinds)]
            file.write_bytes(KINDS[kind](photos[i % len(photos)], rng))
            image = np.asarray(decode(file))
            exported = session.run(None, {"image": image})[0]
            answers.append((kind, exported, probabilities(plain, image), probabilities(run, image)))
    print(f"{'':12} images  in float32: farthest, close, same label   as the run predicts: farthest, close, same label")
    for kind in [*kinds, "all"]:
        exported, *ours = (
            np.stack(column) for column in zip(*(row[1:] for row in answers if kind in (row[0], "all")), strict=True)
        )
        found = [figures(exported, wanted) for wanted in ours]
        print(f"{kind:12} {len(exported):6}" + "".join("{:22.5f}  {:7.1%}  {:7.1%}     ".format(*row) for row in found))
    keys = [f"{name}{of}" for of in ("", "_as_run") for name in ("farthest", "close", "same")]
    row = dict(zip(keys, [figure for row in found for figure in row], strict=True))
    print(json.dumps({"proof": "export", "run": str(options.run), "images": len(answers), **row}))
    return 0 if all(close >= SHARE and same == 1 for _, close, same in found) else 1


def figures(exported: NDArray[np.float64], ours: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the largest difference, the fraction that is close, and the fraction of clear images with the same first label."""
    difference = np.abs(exported - ours).max(1)
    ordered = np.sort(ours)
    clear = ordered[:, -1] - ordered[:, -2] > LEAD
    same = (exported.argmax(1) == ours.argmax(1))[clear]
    return float(difference.max()), float((difference <= CLOSE).mean()), float(same.mean())


if __name__ == "__main__":
    sys.exit(main())
