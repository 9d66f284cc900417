"""Checkpoints, metrics and best weights of a training, and stopping at a signal."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, NoReturn

import numpy as np

from alexnet.data.dataset import Dataset
from alexnet.errors import DivergedError, Interrupted
from alexnet.run import ModelConfig, RunFolder, save_epoch, save_model, write_metrics
from alexnet.training import checkpoint
from alexnet.training.average import WeightAverage
from alexnet.training.budget import Budget
from alexnet.training.checkpoint import TrainingState
from alexnet.training.readings import Readings
from alexnet.training.signals import StopRequest
from alexnet.training.step import Step

SECONDS_BETWEEN_CHECKPOINTS = 120.0  # within an epoch; another one follows each epoch
SECONDS_BETWEEN_READINGS = 1.0
CHECKPOINT_SHARE = 0.1  # of the training time is the most that those after epochs may take


class Session:
    """One session of a training: from its start or a checkpoint, to its end or a signal."""

    def __init__(self, step: Step, dataset: Dataset, folder: RunFolder, budget: Budget, stop: StopRequest) -> None:
        self._step, self._dataset, self._folder, self._budget, self._stop = step, dataset, folder, budget, stop
        self._recipe, self._model, self._group = step.recipe, step.model, step.model.group
        self.state = TrainingState()
        self.best_weights: checkpoint.Tensors = {}  # of the best epoch so far, by name
        self.config = ModelConfig.of(step.recipe, dataset.table.labels, step.preprocessing)
        # The average of the weights, if the recipe asks for it, and the network that is validated and kept.
        average = step.recipe.train.average if step.recipe.train.epochs else 0.0
        self.average = WeightAverage(step.model, self.config.network(), average) if average else None
        self.network = step.model.full_model if self.average is None else self.average.network
        self._stop_code = 0  # the exit code that all processes agreed on
        self._saved_at, self._save_seconds = time.monotonic(), 0.0
        self.readings, self._read_at = Readings(step.model), time.monotonic()

    def resume(self) -> bool:
        """Load the last checkpoint; return False if there is none."""
        loaded = checkpoint.load(self._folder, self._recipe, self._dataset) if self._group.is_main else None
        state, tensors = loaded or (None, {kind: {} for kind in checkpoint.KINDS})
        content = self._group.broadcast(None if state is None else asdict(state))
        if content is None:
            return False
        self.state = TrainingState(**content)
        if self._group.world_size > 1:
            self.state.accumulation_steps = 1
        self._budget.started -= self.state.elapsed_before
        shared = {kind: self._group.broadcast_tensors(tensors[kind]) for kind in checkpoint.KINDS if kind != "best"}
        checkpoint.restore(self._folder.path, shared, self._model, self._step.optimizer, self.average, self._step.loss_scale)
        self.best_weights = tensors["best"]
        return True

    def save(self) -> None:
        """Write a checkpoint. If that fails, the previous one is intact."""
        self.read_steps()
        began = time.monotonic()
        self._budget.flush()
        state = replace(self.state, elapsed_before=began - self._budget.started)
        self.gather_weights()
        momentum = checkpoint.momentum_of(self._model, self._step.optimizer)
        if self._group.is_main:
            tensors = {"network": self._model.full_model.state_dict(), "momentum": momentum, "best": self.best_weights}
            tensors["average"] = {} if self.average is None else self.network.state_dict()
            tensors["loss_scale"] = {} if self._step.loss_scale is None else self._step.loss_scale.state
            checkpoint.save(self._folder, self._recipe, self._dataset, state, tensors)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began

    def gather_weights(self) -> None:
        """Gather the weights, and their average, from all processes; every process calls it."""
        self._model.gather_weights()
        if self.average is not None:
            self.average.gather()

    def after_step(self) -> bool:
        """Stop if any process received a signal; read the steps' numbers and save if that is due; all processes do the same.

        Returns:
            Whether numbers were read.
        """
        code, now, main = self._stop.code, time.monotonic(), self._group.is_main
        due = (now - self._read_at > SECONDS_BETWEEN_READINGS, now - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS)
        interrupted, terminated, reading_due, checkpoint_due = self._group.sum(
            code == 130, code == 143, *(main and d for d in due)
        )
        self._stop_code = 143 if terminated else 130 if interrupted else 0
        self.stop_if_requested()
        if reading_due:
            self.read_steps()
        if checkpoint_due:
            self.save()
        return bool(reading_due)

    def read_steps(self) -> None:
        """Read the numbers of the steps that were not read yet, and stop if a loss is not finite; every process calls it."""
        self._read_at = time.monotonic()
        readings = self.readings.read()
        for batch, reading in enumerate(readings, self.state.batch - len(readings) + 1):
            if not np.isfinite(reading.loss):
                self.raise_diverged(reading.loss, f"batch {batch}")
            self.state.add(reading)
        if self._step.loss_scale is not None and self._step.loss_scale.is_lost():
            self._raise(f"gradients in epoch {self.state.epoch} are not finite in float16", "--set train.precision=float32")

    def keep_epoch(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics to the history and its file, and keep the weights if they are the best so far."""
        state, network = self.state, self.network
        state.history.append(dict(row))
        score = row["val_top1"], -row["val_loss"]
        if score > state.best:
            state.best, state.best_epoch = score, row["epoch"]
            if self._recipe.train.keep == "best" and self._group.is_main:
                self.best_weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        if self._group.is_main:
            write_metrics(self._folder, state.history)
            if pattern := self._recipe.train.save_epochs:
                name = f"{pattern.format(epoch=row['epoch'])}.safetensors"
                save_epoch(self._folder.path / "epochs" / name, network, self.config)

    def keep_step(self, steps: int) -> None:
        """Save the weights after this many steps, if the recipe asks for them; every process calls it."""
        if not self._recipe.train.saves_step(steps):
            return
        self.gather_weights()
        if self._group.is_main:
            save_epoch(self._folder.path / "epochs" / f"step-{steps:08}.safetensors", self.network, self.config)

    def after_epoch(self) -> None:
        """Write a checkpoint, unless it would take more than `CHECKPOINT_SHARE` of the time, or the training is over."""
        due = (time.monotonic() - self._saved_at) * CHECKPOINT_SHARE > self._save_seconds
        if self._group.broadcast_number(due) and not self._budget.is_over(self.state):
            self.save()

    def load_kept_weights(self) -> None:
        """Load the weights that `train.keep` names: those of the last epoch or the best one."""
        self.gather_weights()
        if self._recipe.train.keep == "best" and self.state.history:
            self.network.load_state_dict(self._group.broadcast_tensors(self.best_weights))

    def stop_if_requested(self) -> None:
        """Save and stop if a signal was received."""
        code = self._stop.code if self._group.world_size == 1 else self._stop_code
        if not code:
            return
        self.save()
        if self.best_weights:  # so that the stopped run can already predict
            self._save_best()
        finished = not self.state.batch and self._budget.is_over(self.state)
        where = "after the last epoch" if finished else f"in epoch {self.state.epoch}"
        raise Interrupted(f"stopped {where}, everything is saved; resume with: {self._folder.resume_command}", code)

    def raise_diverged(self, loss: float, where: str) -> NoReturn:
        """Save the best weights and raise `DivergedError`."""
        optimizer = self._recipe.optimizer
        muon = f" --set optimizer.muon_lr={optimizer.muon_lr / 3:.2g}" if optimizer.muon_lr else ""
        lower = f"a lower learning rate: --set optimizer.lr={optimizer.lr / 3:.2g}{muon}"
        self._raise(f"the loss is {loss} in epoch {self.state.epoch}, {where}", lower)

    def _raise(self, problem: str, remedy: str) -> NoReturn:
        saved = ""
        if self.best_weights:
            self._save_best()
            saved = f"; the weights of epoch {self.state.best_epoch} are kept in {self._folder.path}"
        raise DivergedError(f"{problem}{saved}; try {remedy}")

    def _save_best(self) -> None:
        self.network.load_state_dict(self.best_weights)
        save_model(self._folder, self.network, self.config)
