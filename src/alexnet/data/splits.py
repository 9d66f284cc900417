"""Split a dataset into training, validation and test images."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from alexnet.data.table import SPLITS, Table
from alexnet.errors import DataError, counted, format_names
from alexnet.recipe import Data


def split(table: Table, settings: Data, *, train: bool = True) -> Table:
    """Assign every image of a table to a split, as `[data]` of a recipe says.

    Splits that the dataset declares are kept. Without any, the fractions `validation` and `test` are held out; without `val`,
    `validation` is held out of `train`. The rule `hash` sorts the images of each class by a hash of (seed, name) and holds out
    the first, so splits are stratified and disjoint, do not depend on file order, and change by at most one image per border
    when a file is added. The other `RULES` choose only the validation images, as the tutorials do, after a test split by hash.
    """
    declared = {str(name) for name in np.unique(table.splits)} - {""}
    splits, seed, rule = table.splits.copy(), settings.split_seed, RULES.get(settings.split)
    shares = {} if rule or "val" in declared else {"val": settings.validation}
    if not declared:
        _hold_out(table, splits, np.arange(len(table)), {**shares, "test": settings.test}, seed)
    elif shares:
        _hold_out(table, splits, table.rows("train"), shares, seed)
    if rule and "val" not in declared:
        splits[rule(np.flatnonzero(splits == "train"), settings.validation, seed)] = "val"
    done = replace(table, splits=splits)
    if train:
        _check(done, declared, settings)
    return done


def _keras_tail(rows: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Return the last rows after a seeded shuffle, as Keras' `image_dataset_from_directory` does (tutorial 000)."""
    shuffled = rows.copy()
    np.random.RandomState(seed).shuffle(shuffled)  # the generator that Keras uses
    return shuffled[len(rows) - int(len(rows) * share) :]


def _scikit_learn(rows: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Return the validation rows, the test part of scikit-learn's `train_test_split` (tutorial 001)."""
    if len(rows) <= math.ceil(len(rows) * share):  # scikit-learn would raise an error; `_check` has a clearer one
        return rows
    from sklearn.model_selection import train_test_split  # slow to import

    return np.asarray(train_test_split(rows, test_size=share, random_state=seed)[1])


RULES: dict[str, Callable[[NDArray[np.int64], float, int], NDArray[np.int64]]] = {
    "first": lambda rows, share, seed: rows[: round(len(rows) * share)],  # as the code of tutorials 002 and 003 does
    "last": lambda rows, share, seed: rows[len(rows) - round(len(rows) * share) :],  # as their text says
    "keras-tail": _keras_tail,
    "train_test_split": _scikit_learn,
}


def _hold_out(table: Table, splits: NDArray[np.str_], rows: NDArray[np.int64], shares: dict[str, float], seed: int) -> None:
    """Set `splits` at `rows` to `train` and the held-out splits, in place."""
    splits[rows] = "train"
    for target in range(len(table.labels)):
        members = [int(i) for i in rows[table.targets[rows] == target]]
        members.sort(key=lambda i: hashlib.sha256(f"{seed}/{table.images[i]}".encode("utf-8", "surrogateescape")).digest())
        start = 0
        for name, share in shares.items():
            # At least one image per split in every class with enough images for all splits and `train`.
            count = max(1, int(len(members) * share + 0.5)) if share and len(members) > len(shares) else 0
            splits[members[start : start + count]] = name
            start += count


def _check(table: Table, declared: set[str], settings: Data) -> None:
    name, counts, rule = table.name, table.counts(), settings.split
    if declared and "train" not in declared:
        raise DataError(f"{name} has no images to train on, only {format_names(sorted(declared))}: name that folder train")
    train, val = counts.get("train", 0), counts.get("val", 0)
    if train < 2 or not val:
        shares = f"of {counted(len(table), 'readable image')} {train} would train the network and {val} validate it"
        remedy = f"add images, or change data.validation ({settings.validation:g}) or data.test ({settings.test:g})"
        raise DataError(f"{name} is too small: {shares}; {remedy}")
    targets = {split: set(table.targets[table.rows(split)].tolist()) for split in SPLITS}
    if rule in RULES and (taken := [table.labels[i] for i in sorted(targets["val"] - targets["train"])]):
        problem = f"data.split = {rule!r} takes every image of {format_names(taken)} for validation"
        raise DataError(f"{name}: {problem}; data.split=hash takes some of each class")
    if empty := [label for i, label in enumerate(table.labels) if i not in targets["train"] and not declared]:
        raise DataError(f"{name} has no readable image of {format_names(empty)}: add some, or remove the class")
    labels = {split: {table.labels[i] for i in targets[split]} for split in SPLITS if split in declared}
    for one, other in permutations(labels, 2):
        if missing := sorted(labels[other] - labels[one]):
            problem = f"{one} has no images of {format_names(missing)}, which {other} has"
            raise DataError(f"{name}: {problem}; all splits must have the same labels (matched by name)")
