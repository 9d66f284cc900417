"""The learning rate over time, and early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexnet.recipe import Change, Recipe, Schedule
from alexnet.training.checkpoint import TrainingState


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

    lr: float
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
            self.lr, wait.waited = min(self.lr, max(self.lr * self.factor, self.floor)), 0
        self.best, self.waited = wait.best, wait.waited
        return self.lr


def update_schedule(state: TrainingState, recipe: Recipe, row: Mapping[str, Any]) -> None:
    """Let a plateau lower the learning rate, and early stopping end the training, after the epoch of `row`."""
    schedule, stop = recipe.schedule, recipe.stop
    figures = {**row, "val_error": 1 - row["val_top1"]}
    if schedule.kind == "plateau":
        settings = schedule.model_dump(include={"factor", "patience", "threshold", "floor"})
        plateau = Plateau(**{"lr": recipe.optimizer.lr, **settings, **state.plateau})
        plateau.update(figures[schedule.metric])
        state.plateau = {"lr": plateau.lr, "best": plateau.best, "waited": plateau.waited}
    if stop.patience:
        early = EarlyStop(stop.patience, **state.early_stop)
        state.stopped_early = early.update(figures[stop.metric])
        state.early_stop = {"best": early.best, "waited": early.waited}
    state.stopped_early |= bool(stop.train_error) and 1 - row["train_top1"] <= stop.train_error


def lr_at(schedule: Schedule, start: float, share: float, epoch: int) -> float:
    """Return the learning rate, but that of a plateau, which depends on how training goes.

    Args:
        schedule: of the recipe.
        start: `optimizer.lr`.
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
            return epoch_settings(schedule, epoch).lr or start


def input_size_at(recipe: Recipe, share: float, smallest: int) -> int:
    """Return the pixels a side at the network, once a `share` of the training is done: `images.input`, or what leads there.

    A multiple of `images.upscale`, and not below `smallest`.
    """
    block = recipe.images.upscale
    assert isinstance(block, int)
    for until, part in sorted(recipe.schedule.progressive_resize):
        if share < until:
            return max(-(-smallest // block), round(recipe.images.input * part / block)) * block
    return recipe.images.input


def epoch_settings(schedule: Schedule, epoch: int) -> Change:
    """Return what the rows of the epoch table up to `epoch` say together; later rows win."""
    merged = Change(epoch=epoch)
    for row in sorted(schedule.table, key=lambda row: row.epoch):
        if row.epoch <= epoch:
            said = row.model_dump(exclude_none=True, exclude={"epoch", "lr_scale"})
            merged = merged.model_copy(update={**said, "lr_scale": {**merged.lr_scale, **row.lr_scale}})
    return merged
