"""Import what `proof.keras_trained` trained, and compare the probabilities: `python -m proof.imported FOLDER`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from proof.inputs import MEAN

import alexnet

TOLERANCE = 1e-5
SETTINGS = {"annotated": {"images.mean": MEAN}, "cifar10": {"images.cache_size": 32}, "cifar10-1x1": {"images.cache_size": 32}}


def deviation(folder: Path, name: str, out: Path) -> float:
    """Return the largest difference between Keras' probabilities and those of the imported run."""
    with np.load(folder / f"{name}.npz") as file:
        wanted = file["probabilities"]
        photos = [file[key] for key in sorted(file.files) if key.startswith("photo")]
    labels = [f"{i:02}" for i in range(wanted.shape[1])]
    settings = SETTINGS.get(name)
    run = alexnet.load(alexnet.import_keras(folder / f"{name}.keras", variant=name, classes=labels, settings=settings, out=out))
    answers = run.predict(photos, top=len(labels))
    found = [[p["probability"] for p in sorted(a["predictions"], key=lambda p: p["label"])] for a in answers]
    return float(np.abs(np.array(found) - wanted).max())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m proof.imported FOLDER")
    failed = False
    for path in sorted(Path(sys.argv[1]).glob("*.keras")):
        with tempfile.TemporaryDirectory() as temporary:
            largest = deviation(path.parent, path.stem, Path(temporary) / "run")
        print(f"{'imported, 100 photos: probabilities':44} {path.stem:14} {TOLERANCE:10.0e} {largest:18.1e}")
        failed = failed or not largest <= TOLERANCE
    sys.exit(failed)
