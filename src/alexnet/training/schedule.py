"""The rate over time, and when to stop early."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alexnet.recipe import Change, Recipe, Schedule


@dataclass
class EarlyStop:
    """Keras' `EarlyStopping`: time to stop once the figure has not fallen by more than `threshold` for `patience` epochs."""

    patience: int
    threshold: float = 0.0
    best: float | None = None
    waited: int = 0

    def update(self, value: float) -> bool:
        """Take an epoch's figure; tell whether it is time to stop. Figures are compared in float32, as Keras does."""
        if self.best is None or np.float32(value + self.threshold) < np.float32(self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience


@dataclass
class Plateau:
    """Keras' `ReduceLROnPlateau`: `rate` times `factor`, not below `floor`, each time that the figure has waited so."""

    rate: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    floor: float = 0.0
    best: float | None = None
    waited: int = 0

    def update(self, value: float) -> float:
        """Take an epoch's figure; return the rate of the next."""
        wait = EarlyStop(self.patience, self.threshold, self.best, self.waited)
        if wait.update(value):
            self.rate, wait.waited = min(self.rate, max(self.rate * self.factor, self.floor)), 0
        self.best, self.waited = wait.best, wait.waited
        return self.rate


def rate_at(schedule: Schedule, start: float, share: float, epoch: int) -> float:
    """Return the learning rate, but that of a plateau, which depends on how training goes.

    Args:
        schedule: of the recipe.
        start: `optimizer.rate`.
        share: of the training that is done, from 0 to 1.
        epoch: the one at work, from 1.
    """
    match schedule.kind:
        case "one-cycle" if share < schedule.warmup:
            return start * share / schedule.warmup
        case "one-cycle":
            return start * max(0.0, 1 - share) / (1 - schedule.warmup)
        case "step":
            return start * schedule.factor ** ((epoch - 1) // schedule.every)
        case _:
            return table_at(schedule, epoch).rate or start


def input_at(recipe: Recipe, share: float, smallest: int) -> int:
    """Return the pixels a side at the network, once a `share` of the training is done: `images.input`, or what leads there.

    A multiple of `images.enlarge`, and not below `smallest`.
    """
    block = recipe.images.enlarge
    assert isinstance(block, int)
    for until, part in sorted(recipe.schedule.grow):
        if share < until:
            return max(-(-smallest // block), round(recipe.images.input * part / block)) * block
    return recipe.images.input


def table_at(schedule: Schedule, epoch: int) -> Change:
    """Return what the rows of the epoch table up to `epoch` say together; later rows win."""
    merged = Change(epoch=epoch)
    for row in sorted(schedule.table, key=lambda row: row.epoch):
        if row.epoch <= epoch:
            said = row.model_dump(exclude_none=True, exclude={"epoch", "rate_factors"})
            merged = merged.model_copy(update={**said, "rate_factors": {**merged.rate_factors, **row.rate_factors}})
    return merged
