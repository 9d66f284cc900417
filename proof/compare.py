"""Compare the golden files in the repository with fresh ones: `python -m proof.compare COMMITTED FRESH`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Largest deviation allowed of a value, relative to it or, where it is small, to the typical (root mean square) value of its
# array; and of the figure that says how much training changed a tensor, which is a small difference of large numbers.
TOLERANCES = {
    "float64": (1e-9, 1e-6),
    "float32": (1e-5, 1e-2),
    "float32, after a step": (1e-4, 1e-2),
}


def differences(committed: Path, fresh: Path) -> list[str]:
    """Return a line for each thing that is not the same in both folders; print the largest deviations."""
    names, others = ({path.name for path in folder.iterdir()} for folder in (committed, fresh))
    if names != others:
        return [f"{name} is in one of {committed} and {fresh} alone" for name in sorted(names ^ others)]
    found = []
    for name in sorted(names):
        found += (_arrays if name.endswith(".npz") else _decisions)(committed / name, fresh / name)
    return found


def _arrays(committed: Path, fresh: Path) -> list[str]:
    found: list[str] = []
    largest: dict[str, float] = {}
    with np.load(committed) as old, np.load(fresh) as new:
        if old.files != new.files:
            return [f"{committed.name}: other arrays: {sorted(set(old.files) ^ set(new.files))}"]
        for key in old.files:
            if old[key].shape != new[key].shape:
                found.append(f"{committed.name}, {key}: {old[key].shape} is now {new[key].shape}")
                continue
            kind = "float64" if key.startswith("float64/") else "float32, after a step" if "/step" in key else "float32"
            for part, tolerance in _parts("/step" in key, *TOLERANCES[kind]):
                deviation = _deviation(new[key].reshape(-1)[part], old[key].reshape(-1)[part])
                largest[kind] = max(largest.get(kind, 0.0), deviation / tolerance)
                if not deviation <= tolerance:
                    found.append(f"{committed.name}, {key}: off by {deviation:.1e}, more than {tolerance:.0e}")
    for kind, share in largest.items():
        print(f"{committed.name:16} {kind:22} largest deviation {share:.1e} of the tolerance")
    return found


def _parts(summary: bool, tolerance: float, of_change: float) -> Iterator[tuple[slice, float]]:
    """Yield what to compare by itself: a summary is the tensor's typical value, that of its change, then samples."""
    if summary:
        yield from ((slice(0, 1), tolerance), (slice(1, 2), of_change), (slice(2, None), tolerance))
    else:
        yield slice(None), tolerance


def _deviation(new: np.ndarray, old: np.ndarray) -> float:
    a, b = new.astype(np.float64), old.astype(np.float64)
    scale = np.maximum(np.abs(b), np.sqrt(np.mean(b**2)))
    return float(np.max(np.abs(a - b) / np.where(scale == 0, 1, scale)))


def _decisions(committed: Path, fresh: Path) -> list[str]:
    old, new = json.loads(committed.read_text(encoding="utf-8")), json.loads(fresh.read_text(encoding="utf-8"))
    found = [f"{committed.name}: {key!r} differs" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    print(f"{committed.name:16} {'differs' if found else 'the same'}")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m proof.compare COMMITTED FRESH")
    sys.exit("\n".join(differences(Path(sys.argv[1]), Path(sys.argv[2]))) or None)
