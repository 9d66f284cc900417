"""Export a run and give the file and `predict` the same 500 images of all odd kinds: they must say the same.

    python -m proof.export RUN [--images 500]

Each image is written to a file of its kind, decoded as `predict` decodes files, and its pixels, H W 3, go to both. `predict`
is asked in the precision of the run, and in float32, which the file computes in. Wanted: probabilities within 0.01 for 99 % of
the images, and the same first label wherever the first leads by more than 0.02. Prints a table, and a line of JSON; exit code 1
if it is not so.
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


def turned(image: Image.Image, chance: np.random.Generator) -> bytes:
    """Return a JPEG with one of the eight EXIF orientations."""
    exif = Image.Exif()
    exif[0x0112] = int(chance.integers(1, 9))
    return encoded(image, "JPEG", exif=exif)


def deep(image: Image.Image, chance: np.random.Generator) -> bytes:
    """Return a PNG of 16 bits."""
    levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(levels + chance.integers(0, 200, levels.shape, dtype=np.uint16) % 256), "PNG")


def transparent(image: Image.Image, chance: np.random.Generator) -> bytes:
    """Return a PNG with a random opacity."""
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(chance.integers(0, 256, (image.height, image.width), dtype=np.uint8)))
    return encoded(image, "PNG")


def sized(low: int, high: int) -> Callable[[Image.Image, np.random.Generator], bytes]:
    """Return a function that gives a PNG of any size in these bounds, both sides by chance."""

    def png(image: Image.Image, chance: np.random.Generator) -> bytes:
        size = (int(chance.integers(low, high + 1)), int(chance.integers(low, high + 1)))
        return encoded(image.resize(size), "PNG")

    return png


KINDS: dict[str, Callable[[Image.Image, np.random.Generator], bytes]] = {
    "EXIF": turned,
    "CMYK": lambda image, _: encoded(image.convert("CMYK"), "JPEG"),
    "grey": lambda image, _: encoded(image.convert("L"), "PNG"),
    "palette": lambda image, _: encoded(image.convert("P"), "GIF"),
    "16 bits": deep,
    "transparent": transparent,
    "tiny": sized(1, 12),
    "any size": sized(13, 900),
    "huge": sized(2000, 5000),
    "1 wide": lambda image, chance: encoded(image.resize((1, int(chance.integers(1, 1200)))), "PNG"),
    "1 high": lambda image, chance: encoded(image.resize((int(chance.integers(1, 1200)), 1)), "PNG"),
}


def sources(run: alexnet.Run) -> list[Image.Image]:
    """Return some of the run's own validation images."""
    table = run.dataset(split="val")[0].table
    return [decode(table.source(row)) for row in table.rows("val")[:50]]


def probabilities(run: alexnet.Run, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return what `predict` says of an image, in the order of the labels."""
    [answer] = run.predict([image], top=len(run.labels))
    found = {guess["label"]: guess["probability"] for guess in answer["predictions"]}
    return np.array([found[label] for label in run.labels])


def main() -> int:
    """Export, compare, print; return the exit code."""
    parser = argparse.ArgumentParser(description="Compare an export with predict; see the file's head.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    run, plain = alexnet.load(options.run), alexnet.load(options.run)
    plain.config = plain.config.model_copy(update={"precision": "float32"})
    chance, pictures, kinds = np.random.default_rng(2012), sources(run), list(KINDS)
    rows: list[tuple[str, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        run.export(file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for i in range(options.images):
            kind = kinds[i % len(kinds)]
            (Path(folder) / "image").write_bytes(KINDS[kind](pictures[i % len(pictures)], chance))
            image = np.asarray(decode(Path(folder) / "image"))
            rows.append((kind, session.run(None, {"image": image})[0], probabilities(plain, image), probabilities(run, image)))
    print(f"{'':12} images  in float32: farthest, close, same label   as the run predicts: farthest, close, same label")
    for kind in [*kinds, "all"]:
        some = [row for row in rows if kind in (row[0], "all")]
        theirs = np.stack([row[1] for row in some])
        told = [figures(theirs, np.stack([row[column] for row in some])) for column in (2, 3)]
        print(f"{kind:12} {len(some):6}" + "".join(f"{far:22.5f}  {close:7.1%}  {same:7.1%}     " for far, close, same in told))
    (far, close, same), (far_run, close_run, same_run) = told
    done = min(close, close_run) >= SHARE and same == same_run == 1
    keys = {"farthest": far, "close": close, "same": same}
    keys |= {"farthest_as_run": far_run, "close_as_run": close_run, "same_as_run": same_run}
    print(json.dumps({"proof": "export", "run": str(options.run), "images": len(rows), **keys}))
    return 0 if done else 1


def figures(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the largest difference, the share that is close, and the share of clear images with the same first label."""
    difference = np.abs(theirs - ours).max(1)
    ordered = np.sort(ours)
    clear = ordered[:, -1] - ordered[:, -2] > LEAD
    same = (theirs.argmax(1) == ours.argmax(1))[clear]
    return float(difference.max()), float((difference <= CLOSE).mean()), float(same.mean())


if __name__ == "__main__":
    sys.exit(main())
