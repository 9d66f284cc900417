"""The training loop."""

from __future__ import annotations

import time

import numpy as np

from alexnet.data.batches import Batch
from alexnet.data.dataset import Dataset
from alexnet.inference.evaluate import Evaluation, evaluate_split
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Augment, Preprocessing, Recipe
from alexnet.run import RunFolder
from alexnet.training.budget import Budget
from alexnet.training.checkpoint import TrainingState
from alexnet.training.distributed import SINGLE_PROCESS, ProcessGroup
from alexnet.training.monitor import Monitor
from alexnet.training.parallel import Parallel
from alexnet.training.schedule import lr_at, update_schedule
from alexnet.training.session import Session
from alexnet.training.signals import StopRequest
from alexnet.training.step import Step


class Trainer:
    """Trains a network by a resolved recipe.

    Attributes:
        step: forward and backward of a batch, and the optimizer.
        session: checkpoints, signals and the best weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        preprocessing: Preprocessing,
        network: AlexNet,
        folder: RunFolder,
        monitor: Monitor,
        stop: StopRequest,
        started: float,
        group: ProcessGroup = SINGLE_PROCESS,
        parallel: Parallel = "data",
    ) -> None:
        """`started` is the `time.monotonic()` that `train.minutes` counts from; the network is on its device.

        Raises:
            RecipeError: the network or the batches cannot be divided among the processes of `group`.
        """
        self.recipe, self.dataset, self.preprocessing, self.network = recipe, dataset, preprocessing, network
        self.monitor, self.group = monitor, group
        self.step = Step(recipe, preprocessing, dataset.images("train"), network, group, parallel, monitor.say)
        evaluated = 2 * len(dataset.images("val")) + len(dataset.images("test"))
        self.budget = Budget(recipe.train, len(self.step.bounds), evaluated, folder.journal, started, group)
        self.session = Session(recipe, dataset, preprocessing, self.step, folder, self.budget, stop)

    @property
    def state(self) -> TrainingState:
        """Where the training stands."""
        return self.session.state

    @property
    def lr(self) -> float:
        """The learning rate of the current step, before the factors of layers."""
        schedule, start = self.recipe.schedule, self.recipe.optimizer.lr
        if schedule.kind == "plateau":
            return float(self.state.plateau.get("lr", start))
        return lr_at(schedule, start, self.budget.progress(self.state, 0.5), self.state.epoch)

    def fit(self) -> None:
        """Train until the recipe's end; the network then holds the weights that the recipe keeps.

        Raises:
            DivergedError: the loss is not finite.
            Interrupted: a signal came; everything is saved.
        """
        self.budget.begin(self.state)
        # A run that was stopped while its last epoch was evaluated still has batches of that epoch behind it.
        while self.state.batch or not self.budget.is_over(self.state):
            self.train_epoch()
            self.end_epoch()
        self.session.load_kept_weights()

    def train_epoch(self) -> None:
        """Train on the batches of the current epoch that are still to do, or until the time is over."""
        state, augment = self.state, self.step.augmentation(self.state.epoch)
        self._epoch_start = time.monotonic(), state.images_seen
        for batch in self.step.batches(state):
            if self.budget.is_over(state):
                break
            self.train_step(batch, augment)
            averages = (self.lr, state.loss_sum / state.images_seen, state.correct / state.images_seen)
            left = self.budget.seconds_left(state)
            self.monitor.step(f"epoch {state.epoch}", state.batch, len(self.step.bounds), *averages, left)
            self.session.after_step()

    def train_step(self, batch: Batch, augment: Augment) -> None:
        """Take one step on one batch, or on this process's part of it."""
        state = self.state
        start, end = self.step.bounds[state.batch]

        self.step.set_lr(self.lr, state.epoch)
        loss, correct = self.step.forward_backward(batch, augment, state, self.budget.progress(state, 0.5))
        if not np.isfinite(loss):
            self.session.raise_diverged(loss, f"batch {state.batch + 1}, and the step was not taken")
        self.step.optimizer.step()

        state.add_batch(end - start, loss, correct)
        self.budget.record_step(end - start)

    def end_epoch(self) -> None:
        """Validate, adapt the learning rate, write a row of metrics, begin the next epoch."""
        state, (began, seen) = self.state, self._epoch_start
        pace = (state.images_seen - seen) / max(1e-9, time.monotonic() - began)
        self.step.model.gather_weights()
        validation = self.evaluate("val")
        if not np.isfinite(validation.loss):
            self.session.raise_diverged(validation.loss, "in validation")
        measured = validation.to_json()
        row = {
            "epoch": state.epoch,
            "images": state.images_seen,
            "lr": self.lr,
            "train_loss": state.loss_sum / state.images_seen,
            "train_top1": state.correct / state.images_seen,
            **{f"val_{name}": measured[name] for name in ("loss", "top1", "top5")},
            "seconds": time.monotonic() - self.budget.started,
            "images_per_second": pace,
            **self.monitor.usage(),
        }
        update_schedule(state, self.recipe, row)
        self.session.keep_epoch(row)
        state.start_epoch()
        self.monitor.epoch(row, self.recipe.train, self.budget.seconds_left(state))
        self.session.after_epoch()

    def evaluate(self, split: str, temperature: float = 1.0) -> Evaluation:
        """Return the network's evaluation on a split.

        Raises:
            Interrupted: a signal came; everything is saved.
        """
        return evaluate_split(
            self.network,
            self.dataset,
            split,
            self.preprocessing,
            precision=self.recipe.train.precision,
            workers=self.recipe.data.workers,
            temperature=temperature,
            # One process stops at once; several must stop together, so the signal waits for the next step.
            before_batch=self.session.stop_if_requested if self.group.world_size == 1 else lambda: None,
            shard=self.group.shard_slice,
            gather=lambda logits, total: self.group.gather(logits, 0, total),
        )
