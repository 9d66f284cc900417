"""Compare results with those of real Keras, for `make prove`; `proof.prove_keras` computes the latter.

    python -m proof.prove golden COMMITTED FRESH    compare the golden files in the repository with fresh ones
    python -m proof.prove imported FOLDER           compare the probabilities of networks trained in Keras with imported runs

The exit code is 1 if there are differences; each is printed on a line.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from proof.inputs import MEAN

import alexnet

# Largest allowed deviation of a value, relative to it or, if it is small, to the typical (root mean square) value of its array;
# and of the change of a tensor during training, which is a small difference of large numbers.
TOLERANCES = {
    "float64": (1e-9, 1e-6),
    "float32": (1e-5, 1e-2),
    "float32, after a step": (1e-4, 1e-2),
}
PROBABILITY = 1e-5  # largest allowed difference between Keras and an imported run
SETTINGS: dict[str, dict[str, Any]] = {
    "annotated": {"images.mean": MEAN},
    "cifar10": {"images.cache_size": 32},
    "cifar10-1x1": {"images.cache_size": 32},
}


def golden(committed: Path, fresh: Path) -> list[str]:
    """Return a line for each difference between two folders of golden files; print the largest deviations."""
    names, others = ({path.name for path in folder.iterdir()} for folder in (committed, fresh))
    found = [f"{name} is in one of {committed} and {fresh} alone" for name in sorted(names ^ others)]
    for name in sorted(names & others):
        found += (arrays if name.endswith(".npz") else decisions)(committed / name, fresh / name)
    return found


def arrays(committed: Path, fresh: Path) -> list[str]:
    """Compare two files of arrays. An array after a step holds its typical value, that of its change, then samples."""
    found: list[str] = []
    largest: dict[str, float] = {}
    with np.load(committed) as old, np.load(fresh) as new:
        if old.files != new.files:
            return [f"{committed.name}: other arrays: {sorted(set(old.files) ^ set(new.files))}"]
        for key in old.files:
            if old[key].shape != new[key].shape:
                found.append(f"{committed.name}, {key}: {old[key].shape} is now {new[key].shape}")
                continue
            stepped = "/step" in key
            kind = "float64" if key.startswith("float64/") else "float32, after a step" if stepped else "float32"
            plain, of_change = TOLERANCES[kind]
            parts = [(0, 1, plain), (1, 2, of_change), (2, None, plain)] if stepped else [(0, None, plain)]
            for start, stop, tolerance in parts:
                off = deviation(new[key].reshape(-1)[start:stop], old[key].reshape(-1)[start:stop])
                largest[kind] = max(largest.get(kind, 0.0), off / tolerance)
                if not off <= tolerance:
                    found.append(f"{committed.name}, {key}: off by {off:.1e}, more than {tolerance:.0e}")
    for kind, part in largest.items():
        print(f"{committed.name:16} {kind:22} largest deviation {part:.1e} of the tolerance")
    return found


def deviation(new: np.ndarray, old: np.ndarray) -> float:
    """Return the largest difference, relative to the old value, or to the typical one if that is larger."""
    a, b = new.astype(np.float64), old.astype(np.float64)
    scale = np.maximum(np.abs(b), np.sqrt(np.mean(b**2)))
    return float(np.max(np.abs(a - b) / np.where(scale == 0, 1, scale)))


def decisions(committed: Path, fresh: Path) -> list[str]:
    """Compare two JSON files."""
    old, new = json.loads(committed.read_text(encoding="utf-8")), json.loads(fresh.read_text(encoding="utf-8"))
    found = [f"{committed.name}: {key!r} differs" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    print(f"{committed.name:16} {'differs' if found else 'the same'}")
    return found


def imported(folder: Path) -> list[str]:
    """Import the networks in `folder`; return a line for each with probabilities that differ from those of Keras."""
    found = []
    for path in sorted(folder.glob("*.keras")):
        with np.load(path.with_suffix(".npz")) as file:
            wanted = file["probabilities"]
            photos = [file[key] for key in sorted(file.files) if key.startswith("photo")]
        labels = [f"{i:02}" for i in range(wanted.shape[1])]
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / "run"
            alexnet.import_weights(path, variant=path.stem, classes=labels, settings=SETTINGS.get(path.stem), out=out)
            answers = alexnet.load(out).predict(photos, top=len(labels))
        ours = [[p["probability"] for p in sorted(a["predictions"], key=lambda p: p["label"])] for a in answers]
        largest = float(np.abs(np.array(ours) - wanted).max())
        print(f"{'imported, 100 photos: probabilities':44} {path.stem:14} {PROBABILITY:10.0e} {largest:18.1e}")
        if not largest <= PROBABILITY:
            found.append(f"{path.stem}: probabilities are off by {largest:.1e}")
    return found


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["golden", committed, fresh]:
            sys.exit("\n".join(golden(Path(committed), Path(fresh))) or None)
        case ["imported", folder]:
            sys.exit("\n".join(imported(Path(folder))) or None)
        case _:
            sys.exit("usage: python -m proof.prove golden COMMITTED FRESH | imported FOLDER")
