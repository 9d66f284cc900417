"""The learning rate over time, and early stopping.

A rate can fall by its schedule (`lr_at`; with `--minutes` the clock drives it), at a plateau of the metrics (`Plateau`), by a
row of `schedule.table` (`epoch_settings`), or for single layers by `lr_scale`, which optimizer.py applies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexnet.errors import counted
from alexnet.recipe import Change, Recipe, Schedule
from alexnet.training.checkpoint import TrainingState


@dataclass
class EarlyStop:
    """Keras' `EarlyStopping`: stops once the metric has not fallen by more than `threshold` for `patience` epochs."""

    patience: int
    threshold: float = 0.0
    best: float | None = None
    bad_epochs: int = 0

    def update(self, value: float) -> bool:
        """Record an epoch's metric and return whether to stop. Values are compared in float32, as Keras does."""
        if self.best is None or np.float32(value + self.threshold) < np.float32(self.best):
            self.best, self.bad_epochs = value, 0
        else:
            self.bad_epochs += 1
        return self.bad_epochs >= self.patience


@dataclass
class Plateau:
    """Keras' `ReduceLROnPlateau`: multiplies `lr` by `factor`, down to `floor`, whenever `EarlyStop` would stop."""

    lr: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    floor: float = 0.0
    best: float | None = None
    bad_epochs: int = 0

    def update(self, value: float) -> float:
        """Record an epoch's metric and return the learning rate of the next epoch."""
        early = EarlyStop(self.patience, self.threshold, self.best, self.bad_epochs)
        if early.update(value):
            self.lr, early.bad_epochs = min(self.lr, max(self.lr * self.factor, self.floor)), 0
        self.best, self.bad_epochs = early.best, early.bad_epochs
        return self.lr


def update_schedule(state: TrainingState, recipe: Recipe, row: Mapping[str, Any]) -> list[str]:
    """Update the plateau schedule and early stopping after an epoch, from its `row` of metrics; return what happened."""
    schedule, stop, messages = recipe.schedule, recipe.stop, list[str]()
    metrics = {**row, "val_error": 1 - row["val_top1"]}
    if schedule.kind == "plateau":
        settings = schedule.model_dump(include={"factor", "patience", "threshold", "floor"})
        plateau = Plateau(**{"lr": recipe.optimizer.lr, **settings, **state.plateau})
        before, after = plateau.lr, plateau.update(metrics[schedule.metric])
        if after < before:
            messages.append(
                f"{schedule.metric} has not improved for {counted(schedule.patience, 'epoch')}: lr {before:g} -> {after:g}"
            )
        state.plateau = {"lr": plateau.lr, "best": plateau.best, "bad_epochs": plateau.bad_epochs}
    if stop.patience:
        early = EarlyStop(stop.patience, **state.early_stop)
        state.stopped_early = early.update(metrics[stop.metric])
        if state.stopped_early:
            messages.append(f"{stop.metric} has not improved for {counted(stop.patience, 'epoch')}: training stops")
        state.early_stop = {"best": early.best, "bad_epochs": early.bad_epochs}
    if stop.train_error and 1 - row["train_top1"] <= stop.train_error:
        state.stopped_early = True
        messages.append(f"the training error has reached {stop.train_error:g}: training stops")
    return messages


def lr_at(schedule: Schedule, base_lr: float, progress: float, epoch: int) -> float:
    """Return the learning rate of any schedule but `plateau`, which depends on the metrics.

    `base_lr` is `optimizer.lr`; `progress` is the fraction of the training that is done; `epoch` counts from 1.
    """
    match schedule.kind:
        case "one-cycle" if progress < schedule.warmup:
            return base_lr * progress / schedule.warmup
        case "one-cycle":
            return base_lr * max(0.0, 1 - progress) / (1 - schedule.warmup)
        case "step":
            return base_lr * schedule.factor ** ((epoch - 1) // schedule.every)
        case _:
            return epoch_settings(schedule, epoch).lr or base_lr


def input_size_at(recipe: Recipe, progress: float, smallest: int) -> int:
    """Return the side of the network's input in pixels: `images.input`, reduced as in `schedule.progressive_resize`.

    It is a multiple of `images.upscale` and at least `smallest`; `progress` is the fraction of the training that is done.
    """
    upscale = recipe.images.scale_factor
    for until, scale in sorted(recipe.schedule.progressive_resize):
        if progress < until:
            return max(-(-smallest // upscale), round(recipe.images.input_side * scale / upscale)) * upscale
    return recipe.images.input_side


def work_done(schedule: Schedule, progress: float) -> float:
    """Return the fraction of the training's time that passes up to `progress`, if time is proportional to pixels."""
    done = total = start = 0.0
    for end, scale in (*sorted(schedule.progressive_resize), (1.0, 1.0)):
        total += scale**2 * (end - start)
        done += scale**2 * max(0.0, min(progress, end) - start)
        start = end
    return done / total


def epoch_settings(schedule: Schedule, epoch: int) -> Change:
    """Merge the rows of `schedule.table` up to `epoch`; later rows win."""
    merged = Change(epoch=epoch)
    for row in sorted(schedule.table, key=lambda row: row.epoch):
        if row.epoch <= epoch:
            changes = row.model_dump(exclude_none=True, exclude={"epoch", "lr_scale"})
            merged = merged.model_copy(update={**changes, "lr_scale": {**merged.lr_scale, **row.lr_scale}})
    return merged
