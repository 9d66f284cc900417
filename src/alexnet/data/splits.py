"""Split a dataset into training, validation and test images."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain, permutations

import numpy as np
from numpy.typing import NDArray

from alexnet.data.near_duplicates import join_groups
from alexnet.data.table import SPLITS, Table
from alexnet.errors import DataError, counted, format_names, truncate
from alexnet.progress import say
from alexnet.recipe import Data


def split(given: Table, settings: Data, alike: Sequence[Sequence[int]] = (), *, train: bool = True) -> Table:
    """Assign every image of a table to a split, as `[data]` of a recipe says.

    Splits that the dataset declares are kept. Without any, the fractions `validation` and `test` are held out; without `val`,
    `validation` is held out of `train`. The rule `hash` sorts the images of each class by a hash of (seed, name) and holds out
    the first, so splits are stratified and disjoint, do not depend on file order, and change by at most one image per border
    when a file is added. The other `RULES` choose only the validation images, as the tutorials do, after a test split by hash.

    Images of a group are held out together: a group is sorted by the hash of its name, among those of the class that most of
    its images have, and a split ends at the group's end that is nearest to its size. Groups larger than a split come last.
    Images that look `alike`, given as groups of rows, are held out together too (`join_groups`), if the rule is `hash`.

    With `folds`, the fold `fold` is the test split (`folds_of`), and `validation` is held out of the others; a declared test
    split is set aside, as no split.
    """
    table, declared = given, {str(name) for name in np.unique(given.splits)} - {""}
    if settings.split in RULES and table.groups is not None and "val" not in declared:
        raise DataError(f"{table.name} has groups, which data.split = {settings.split!r} would part: set data.split=hash")
    splits, seed, rule = table.splits.copy(), settings.split_seed, RULES.get(settings.split)
    shares = {} if rule or ("val" in declared and not settings.folds) else {"val": settings.validation}
    rows = np.flatnonzero(splits != "test") if settings.folds else table.rows("train") if declared else np.arange(len(table))
    if joins_look_alikes(table, settings):
        table = _joined(table, rows, seed, alike, least=3 if settings.folds or not declared else 2)
    if settings.folds:
        folds = folds_of(table, rows, settings.folds, seed)
        splits[:], declared = "", set()
        _hold_out(table, splits, rows[folds != settings.fold], shares, seed)
        splits[rows[folds == settings.fold]] = "test"
    elif not declared:
        _hold_out(table, splits, rows, {**shares, "test": settings.test}, seed)
    elif shares:
        _hold_out(table, splits, rows, shares, seed)
    if rule and "val" not in declared:
        splits[rule(np.flatnonzero(splits == "train"), settings.validation, seed)] = "val"
    done = replace(given, splits=splits)
    if train:
        _check(done, declared, settings)
    return done


def joins_look_alikes(table: Table, settings: Data) -> bool:
    """Return whether `split` keeps images together that look alike.

    It does not where splits are declared or chosen by a tutorial's rule, nor in built-in datasets, which are in memory.
    """
    chosen = settings.folds > 0 or "val" not in table.splits
    return settings.near_duplicates == "together" and settings.split not in RULES and chosen and table.pixels is None


def folds_of(table: Table, rows: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each of `rows`, from 1 on.

    The groups of each class, sorted by a hash, are cut into `folds` parts of nearly equal size, so that folds are stratified
    and change by at most one group per border when an image is added. Each class begins with a fold of its own, so that small
    classes are not all in the same.
    """
    result = np.zeros(len(table), dtype=np.int64)
    for label, groups in zip(table.labels, _groups_by_class(table, rows, seed), strict=True):
        sizes = np.array([len(group) for group in groups])
        middles = np.cumsum(sizes) - sizes / 2
        first = int.from_bytes(_digest(seed, label)[:4], "big")
        for group, fold in zip(groups, (middles * folds / max(1, sizes.sum())).astype(int).tolist(), strict=True):
            result[group] = (first + fold) % folds + 1
    if empty := sorted(set(range(1, folds + 1)) - set(result[rows].tolist())):
        raise DataError(
            f"{table.name} has too few images that stand alone for {folds} folds: fold {empty[0]} is empty; give fewer"
        )
    return result[rows]


def _joined(table: Table, rows: NDArray[np.int64], seed: int, alike: Sequence[Sequence[int]], least: int) -> Table:
    """Return the table with images that look `alike` as groups, unless they would leave a class fewer than `least` groups."""
    if not alike:
        return table
    joined = replace(table, groups=join_groups(table, alike))
    counts = [[len(groups) for groups in _groups_by_class(each, rows, seed)] for each in (table, joined)]
    for label, before, after in zip(table.labels, *counts, strict=True):
        if after < least <= before:
            many = f"most images of {truncate(label)!r} look alike"
            say(f"{table.name}: {many}, so some of them are in different splits, and scores are too good: add others")
            return table
    return joined


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

    by_class: list[list[list[int]]] = [[] for _ in table.labels]
    for group in (groups[name] for name in sorted(groups, key=lambda name: _digest(seed, name[1]))):
        by_class[np.bincount(table.targets[group]).argmax()].append(group)  # its most frequent one
    yield from by_class


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


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
        outside = " outside the fold held out" if settings.folds else " outside the groups held out" if table.groups else ""
        raise DataError(f"{name} has no readable image of {format_names(empty)}{outside}: add some, or remove the class")
    labels = {split: {table.labels[i] for i in targets[split]} for split in SPLITS if split in declared}
    for one, other in permutations(labels, 2):
        if missing := sorted(labels[other] - labels[one]):
            problem = f"{one} has no images of {format_names(missing)}, which {other} has"
            raise DataError(f"{name}: {problem}; all splits must have the same labels (matched by name)")
