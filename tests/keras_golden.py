"""Compare with reference values recorded from Keras; used by `test_keras.py` and `test_keras_data.py`.

The references are in `golden/keras`. `make prove` recomputes them in another folder, named by `ALEXNET_KERAS`, and so gets the
table of deviations that is printed at the end. Deviations are relative to the value, or to the typical (root mean square) value
of its tensor if that is larger, unless the row names a unit.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from proof import inputs

__all__ = ["agree", "decisions", "golden", "inputs", "relative"]

FRESH = os.environ.get("ALEXNET_KERAS")
GOLDEN = Path(FRESH) if FRESH else Path(__file__).parent / "golden" / "keras"
TABLE: list[tuple[str, str, float, float]] = []


def agree(quantity: str, name: str, tolerance: float, deviation: float) -> None:
    """Add a row to the table, and check the tolerance."""
    TABLE.append((quantity, name, tolerance, deviation))
    assert deviation <= tolerance, f"{quantity} of {name}: off by {deviation:.2e}, more than {tolerance:.0e}"


def relative(result: np.ndarray, expected: np.ndarray, typical: float | None = None) -> float:
    """Return the largest deviation, relative as described at the top of this file."""
    typical = float(np.sqrt(np.mean(expected**2))) if typical is None else typical
    return float(np.max(np.abs(result - expected) / np.maximum(np.abs(expected), typical)))


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key].astype(np.float64) for key in file.files}


@functools.cache
def decisions() -> dict[str, Any]:
    return json.loads((GOLDEN / "decisions.json").read_text(encoding="utf-8"))


def print_table() -> None:
    print(f"\n{'quantity':46} {'of':14} {'tolerance':>10} {'largest deviation':>18}")
    for quantity, name, tolerance, deviation in TABLE:
        print(f"{quantity:46} {name:14} {tolerance:10.2g} {deviation:18.2g}")


if FRESH:
    atexit.register(print_table)
