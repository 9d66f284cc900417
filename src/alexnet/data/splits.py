"""Which images train, which validate, which test."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from alexnet.data.table import SPLITS, Table
from alexnet.errors import DataError


def split(table: Table, validation: float, test: float, seed: int) -> Table:
    """Return the table with a split for every image.

    What the dataset declares stays. Where it declares nothing, `validation` and `test` are the shares held out of each class;
    where it declares no `val`, that share is held out of `train`. Within a class, images are ordered by a hash of (seed, name)
    and the first of them are held out: so the splits are stratified and disjoint, do not depend on the order of files, and
    adding a file moves at most one file at each border.

    Raises:
        DataError: no image to train on or to validate with, or splits whose labels differ.
    """
    declared = {str(name) for name in np.unique(table.splits)} - {""}
    splits = table.splits.copy()
    if not declared:
        _hold_out(table, splits, np.arange(len(table)), {"val": validation, "test": test}, seed)
    elif "val" not in declared:
        _hold_out(table, splits, table.rows("train"), {"val": validation}, seed)
    done = replace(table, splits=splits)
    _check(done, declared)
    return done


def _hold_out(table: Table, splits: NDArray[np.str_], rows: NDArray[np.int64], shares: dict[str, float], seed: int) -> None:
    """Write `train` and the held-out splits into `splits` at `rows`."""
    splits[rows] = "train"
    for target in range(len(table.labels)):
        members = [int(i) for i in rows[table.targets[rows] == target]]
        members.sort(key=lambda i: hashlib.sha256(f"{seed}/{table.images[i]}".encode("utf-8", "surrogateescape")).digest())
        start = 0
        for name, share in shares.items():
            # A class of one image trains; from then on every split that is wanted gets one, as soon as there are enough.
            wanted = max(1, int(len(members) * share + 0.5)) if share and len(members) > len(shares) else 0
            splits[members[start : start + wanted]] = name
            start += wanted


def _check(table: Table, declared: set[str]) -> None:
    counts = table.counts()
    if counts.get("train", 0) < 2 or "val" not in counts:
        raise DataError(
            f"{table.name} is too small: of {len(table)} readable images {counts.get('train', 0)} would train the network "
            f"and {counts.get('val', 0)} validate it"
        )
    trained = set(table.targets[table.rows("train")].tolist())
    if lost := [label for i, label in enumerate(table.labels) if i not in trained and not declared]:
        raise DataError(f"{table.name} has no readable image of {', '.join(map(repr, lost))}: add some, or remove the class")
    labels = {
        name: {table.labels[i] for i in np.unique(table.targets[table.rows(name)])} for name in SPLITS if name in declared
    }
    for name, inside in labels.items():
        for other, there in labels.items():
            if missing := sorted(there - inside):
                raise DataError(
                    f"{table.name}: {name} has no images of {', '.join(map(repr, missing))}, which {other} has; "
                    "the splits must hold the same labels (matched by name)"
                )
