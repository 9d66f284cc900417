"""Split a dataset into training, validation and test images."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, chain, permutations

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

    Images of a group are held out together: a group is sorted by the hash of its name, among those of the class that most of
    its images have, and a split ends at the group's end that is nearest to its size. Groups larger than a split come last.
    """
    declared = {str(name) for name in np.unique(table.splits)} - {""}
    if settings.split in RULES and table.groups is not None and "val" not in declared:
        raise DataError(f"{table.name} has groups, which data.split = {settings.split!r} would part: set data.split=hash")
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
    for groups in _groups_by_class(table, rows, seed):
        total = sum(map(len, groups))
        # At least one group per split in every class with enough groups for all splits and `train`.
        enough = len(groups) > len(shares)
        quotas = {name: max(1, int(total * share + 0.5)) if share and enough else 0 for name, share in shares.items()}
        most = min(filter(None, quotas.values()), default=0)
        groups.sort(key=lambda group: len(group) > most)  # stable
        later = len(quotas)  # splits that need a group, with `train`
        for name, quota in quotas.items():
            ends = list(accumulate(map(len, groups[: len(groups) - later]), initial=0))
            count = int(np.abs(np.array(ends) - quota)[1:].argmin()) + 1 if quota else 0  # the end nearest to the quota
            splits[list(chain.from_iterable(groups[:count]))] = name
            del groups[:count]
            later -= 1


def _groups_by_class(table: Table, rows: NDArray[np.int64], seed: int) -> Iterator[list[list[int]]]:
    """Yield the groups of each class, sorted by a hash; an image without a group is one of its own."""
    groups: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for row in map(int, rows):
        name = table.groups[row] if table.groups else ""
        groups[bool(name), name or table.images[row]].append(row)

    def key(name: tuple[bool, str]) -> bytes:
        return hashlib.sha256(f"{seed}/{name[1]}".encode("utf-8", "surrogateescape")).digest()

    by_class: list[list[list[int]]] = [[] for _ in table.labels]
    for group in (groups[name] for name in sorted(groups, key=key)):
        by_class[np.bincount(table.targets[group]).argmax()].append(group)  # its most frequent one
    yield from by_class


def _check(table: Table, declared: set[str], settings: Data) -> None:
    name, counts, rule = table.name, table.counts(), settings.split
    if declared and "train" not in declared:
        raise DataError(f"{name} has no images to train on, only {format_names(sorted(declared))}: name that folder train")
    train, val = counts.get("train", 0), counts.get("val", 0)
    if train < 2 or not val:
        shares = f"of {counted(len(table), 'readable image')} {train} would train the network and {val} validate it"
        remedy = f"add images, or change data.validation ({settings.validation:g}) or data.test ({settings.test:g})"
        whole = ", as the images of a group stay together" if table.groups else ""
        raise DataError(f"{name} is too small: {shares}{whole}; {remedy}")
    targets = {split: set(table.targets[table.rows(split)].tolist()) for split in SPLITS}
    if rule in RULES and (taken := [table.labels[i] for i in sorted(targets["val"] - targets["train"])]):
        problem = f"data.split = {rule!r} takes every image of {format_names(taken)} for validation"
        raise DataError(f"{name}: {problem}; data.split=hash takes some of each class")
    if empty := [label for i, label in enumerate(table.labels) if i not in targets["train"] and not declared]:
        outside = " outside the groups held out" if table.groups else ""
        raise DataError(f"{name} has no readable image of {format_names(empty)}{outside}: add some, or remove the class")
    labels = {split: {table.labels[i] for i in targets[split]} for split in SPLITS if split in declared}
    for one, other in permutations(labels, 2):
        if missing := sorted(labels[other] - labels[one]):
            problem = f"{one} has no images of {format_names(missing)}, which {other} has"
            raise DataError(f"{name}: {problem}; all splits must have the same labels (matched by name)")
