"""The training loop."""

import time
from typing import Any

import numpy as np

from alexnet.data.batches import Batch
from alexnet.data.dataset import Dataset
from alexnet.inference.evaluate import Evaluation, evaluate_split
from alexnet.inference.metrics import sigmoid_cross_entropy
from alexnet.network.known import FITTED, Known
from alexnet.recipe import Augment
from alexnet.run import RunFolder
from alexnet.training.budget import Budget
from alexnet.training.checkpoint import TrainingState
from alexnet.training.frozen import FrozenOutputs, keep_frozen_outputs
from alexnet.training.monitor import Monitor
from alexnet.training.schedule import lr_at, update_schedule
from alexnet.training.session import Session
from alexnet.training.signals import StopRequest
from alexnet.training.step import Step


class Trainer:
    """Trains a network by a resolved recipe."""

    def __init__(
        self, step: Step, dataset: Dataset, folder: RunFolder, monitor: Monitor, stop: StopRequest, started: float
    ) -> None:
        """`train.minutes` count from `started`, a `time.monotonic()`."""
        self.step, self.dataset, self.monitor = step, dataset, monitor
        self.recipe, self.group = step.recipe, step.model.group
        evaluated = 2 * len(dataset.images("val")) + len(dataset.images("test")) + min(FITTED, len(dataset.images("train")))
        self.budget = Budget(self.recipe, len(step.bounds), evaluated, folder.journal, started, self.group)
        self.session = Session(step, dataset, folder, self.budget, stop)
        self.network = self.session.network  # the one that is validated, tested and saved
        self.frozen: dict[str, FrozenOutputs] = {}  # by split

    @property
    def state(self) -> TrainingState:
        """The current epoch and batch, running sums, and history."""
        return self.session.state

    @property
    def lr(self) -> float:
        """The learning rate of the current step, before the factors of `lr_scale`."""
        schedule, base_lr = self.recipe.schedule, self.recipe.optimizer.lr
        if schedule.kind == "plateau":
            return float(self.state.plateau.get("lr", base_lr))
        return lr_at(schedule, base_lr, self.budget.progress(self.state, 0.5), self.state.epoch)

    def fit(self) -> None:
        """Train to the end of the recipe, then load the weights that it keeps (the best or the last)."""
        if self.group.world_size == 1:
            self.keep_frozen_outputs()
        self.budget.begin(self.state)
        if self.recipe.model.fit_head and not self.state.history:
            self.record_head()
        if not self.budget.steps_done(self.state):
            self.session.keep_step(0)
        # If it was interrupted during the validation of the last epoch, training is over but that epoch is still to be
        # finished.
        while self.state.batch or not self.budget.is_over(self.state):
            self.train_epoch()
            self.end_epoch()
        self.session.load_kept_weights()

    def keep_frozen_outputs(self) -> None:
        """Compute the outputs of frozen layers once, if the recipe allows, and train and validate from them."""
        stop = self.session.stop_if_requested
        arguments = self.recipe, self.network, self.dataset, self.step.preprocessing
        self.frozen = keep_frozen_outputs(*arguments, before_batch=stop, log=self.monitor.say)
        if self.frozen:
            self.step.images = self.frozen["train"]

    def train_epoch(self) -> None:
        """Train on the remaining batches of the current epoch, or until the budget is spent."""
        state, augment = self.state, self.step.augmentation(self.state.epoch)
        self._epoch_began, self._images_before = time.monotonic(), state.images_seen
        for batch in self.step.batches(state):
            if self.budget.is_over(state):
                break
            self.train_step(batch, augment)
            if self.session.after_step():
                loss, top1 = state.loss_sum / state.images_seen, state.correct / state.images_seen
                left = self.budget.seconds_left(state)
                self.monitor.step(f"epoch {state.epoch}", state.batch, len(self.step.bounds), self.lr, loss, top1, left)
        self.session.read_steps()

    def train_step(self, batch: Batch, augment: Augment) -> None:
        """Take one step on one batch, or on this process's shard of it."""
        state = self.state
        start, end = self.step.bounds[state.batch]

        self.step.set_lr(self.lr, state.epoch)
        numbers = self.step.forward_backward(batch, augment, state, self.budget.progress(state, 0.5))
        self.step.update()
        if self.session.average is not None:
            self.session.average.update(self.budget.progress(state), self.budget.steps_done(state))

        state.batch += 1
        self.session.readings.add(end - start, *numbers)
        self.budget.record_step(end - start)
        self.session.keep_step(self.budget.steps_done(state))

    def end_epoch(self) -> None:
        """Validate, update the schedule, record the metrics, and move on to the next epoch."""
        state = self.state
        images, seconds = state.images_seen - self._images_before, time.monotonic() - self._epoch_began
        self.session.gather_weights()
        train = {"train_loss": state.loss_sum / state.images_seen, "train_top1": state.correct / state.images_seen}
        row = self.metrics(state.epoch, state.images_seen, train, images / max(1e-9, seconds))
        messages = update_schedule(state, self.recipe, row)
        self.session.keep_epoch(row)
        state.start_epoch()
        self.monitor.epoch(row, self.recipe.train, self.budget.seconds_left(state))
        for message in messages:
            self.monitor.say(message)
        self.session.after_epoch()

    def record_head(self) -> None:
        """Record the metrics of the fitted head as those of epoch 0."""
        began = time.monotonic()
        train = self.evaluate("train")
        images, seconds = len(train.targets), time.monotonic() - began
        row = self.metrics(0, images, {"train_loss": train.loss, "train_top1": train.top1}, images / max(1e-9, seconds))
        self.session.keep_epoch(row)
        self.monitor.head(row)

    def metrics(self, epoch: int, images: int, train: dict[str, float], pace: float) -> dict[str, Any]:
        """Validate, and return a row of metrics: of an epoch on that many `images`, at `pace` images per second."""
        validation = self.evaluate("val")
        if not np.isfinite(validation.loss):
            self.session.raise_diverged(validation.loss, "in validation")
        val_metrics = validation.to_json()
        if self.recipe.train.loss == "binary":
            val_metrics["loss"] = sigmoid_cross_entropy(validation.logits, validation.targets)
        return {
            "epoch": epoch,
            "images": images,
            "lr": self.lr if epoch else 0.0,
            **train,
            **{f"val_{name}": val_metrics[name] for name in ("loss", "top1", "top5")},
            "seconds": time.monotonic() - self.budget.started,
            "images_per_second": pace,
            **self.monitor.usage(),
        }

    def evaluate(self, split: str, temperature: float = 1.0, known: Known | None = None) -> Evaluation:
        """Evaluate the network on a split, and with `known`, score its images."""
        if split in self.frozen:
            self.session.stop_if_requested()
            logits, scores = self.frozen[split].compute(self.network, self.recipe.train.precision, known)
            targets, table, side = self.frozen[split].targets, self.dataset.table, self.step.preprocessing.input_side
            shape, named = (3, side, side), (self.dataset.names(split), split)
            return Evaluation(logits, targets, table.labels, shape, temperature, table.skipped, known, scores, *named)
        return evaluate_split(
            self.network,
            self.dataset,
            split,
            self.step.preprocessing,
            precision=self.recipe.train.precision,
            workers=self.recipe.data.workers,
            temperature=temperature,
            known=known,
            # A single process stops at once. Several have to stop together, so a signal waits for the next step.
            before_batch=self.session.stop_if_requested if self.group.world_size == 1 else lambda: None,
            shard=self.group.shard_slice,
            total=self.group.total,
        )
