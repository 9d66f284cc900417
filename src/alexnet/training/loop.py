"""The training loop."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from alexnet.data.augment import training_input
from alexnet.data.batches import Batch, epoch_batches, parts
from alexnet.data.dataset import Dataset
from alexnet.data.images import Preprocessing
from alexnet.errors import DivergedError, Interrupted, RecipeError, RunError, quoted
from alexnet.measure.evaluate import Evaluation, evaluate_split
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast, choose_precision
from alexnet.network.fused import narrow_gradients
from alexnet.recipe import Augment, Recipe
from alexnet.run import Card, RunFolder, save_model, save_weights, write_text
from alexnet.training import checkpoint, state
from alexnet.training.clock import Clock
from alexnet.training.monitor import Monitor
from alexnet.training.optimizer import build_loss, build_optimizer, check_names, frozen, set_rate
from alexnet.training.schedule import EarlyStop, Plateau, input_at, rate_at, table_at
from alexnet.training.state import Progress
from alexnet.training.stop import StopRequest

SECONDS_BETWEEN_CHECKPOINTS = 120.0  # within an epoch; another is written after each epoch, but
SHARE_FOR_CHECKPOINTS = 0.1  # of the time is the most that they may take


class Trainer:
    """Trains a network by a resolved recipe; can start from a checkpoint, and leaves one when it is stopped."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        how: Preprocessing,
        network: AlexNet,
        folder: RunFolder,
        monitor: Monitor,
        started: float,
    ) -> None:
        """`started` is the `time.monotonic()` that `train.minutes` counts from; the network is on its device."""
        self.recipe, self.dataset, self.how, self.network = recipe, dataset, how, network
        self.folder, self.monitor, self.started = folder, monitor, started
        self.device = next(network.parameters()).device
        self.train, self.val = dataset.images("train"), dataset.images("val")
        assert isinstance(recipe.train.batch, int)  # resolved
        self.cuts = parts(len(self.train), recipe.train.batch, recipe.train.last_batch)
        if not self.cuts:
            raise RecipeError(f"train.batch is {recipe.train.batch}, but {len(self.train)} images train, and short ones drop")
        self.optimizer = build_optimizer(network, recipe.optimizer)
        if choose_precision(self.device, recipe.train.precision) == "bfloat16":
            narrow_gradients(network)
        for row in recipe.schedule.table:
            check_names(network, row.rate_factors, "schedule.table")
        self.loss = build_loss(recipe, self.train.targets, len(dataset.table.labels), self.device)
        self.at = Progress()
        self.best_weights: checkpoint.Tensors = {}
        self.clock: Clock | None = None
        if recipe.train.minutes is not None:
            evaluated = 2 * len(self.val) + len(dataset.table.rows("test"))
            self.clock = Clock(recipe.train.minutes, evaluated, started, folder.journal)
        self._stop = StopRequest()
        self._saved, self._saving = time.monotonic(), 0.0  # when, and the seconds that it took
        self._began = (0.0, 0)  # when this epoch began, and how many of its images were done then
        self._fit_began = (0.0, 0.0)  # when training began or was taken up, and the share of it that was done then

    def fit(self, stop: StopRequest) -> None:
        """Train until the recipe's end; the network then holds the weights that the recipe keeps.

        Raises:
            DivergedError: the loss is not finite.
            Interrupted: `stop` noted a signal; everything is saved.
        """
        self._stop = stop
        if self.at.prelude is None:
            self.at.prelude = time.monotonic() - self.started
        if self.clock is not None:
            self.clock.prelude = self.at.prelude
        self._fit_began = (time.monotonic(), self._share())
        while self.at.batch or not self._over():  # the last epoch may have been stopped while it was evaluated
            self._run_epoch()
            self._end_epoch()
        if self.recipe.train.keep == "best" and self.best_weights:
            self.network.load_state_dict(self.best_weights)

    def evaluate(self, split: str, temperature: float = 1.0) -> Evaluation:
        """Return the network's evaluation on a split.

        Raises:
            Interrupted: a signal was noted; everything is saved.
        """
        return evaluate_split(
            self.network,
            self.dataset,
            split,
            self.how,
            precision=self.recipe.train.precision,
            workers=self.recipe.data.workers,
            temperature=temperature,
            between=self._heed,
        )

    def card(self) -> Card:
        """Return what belongs to the weights."""
        model = self.recipe.model
        labels = self.dataset.table.labels
        return Card(
            variant=model.variant,
            width=model.width,
            overrides=model.overrides,
            labels=labels,
            preprocessing=self.how,
            precision=self.recipe.train.precision,
        )

    def resume(self) -> bool:
        """Take up the last checkpoint; False where there is none.

        Raises:
            RunError: it is damaged, or the recipe or the dataset is not what it was.
        """
        found = state.load(self.folder, self.recipe, self.dataset)
        if found is None:
            return False
        self.at, tensors = found
        self.started -= self.at.seconds_before
        if self.clock is not None:
            self.clock.started = self.started
        state.put_back(tensors, self.network, self.optimizer, self.folder.path)
        self.best_weights = tensors["best"]
        return True

    def save(self) -> None:
        """Write a checkpoint: weights, momentum, the best weights, and where the training stands.

        Raises:
            RunError: it cannot be written; the one before is intact.
        """
        began = time.monotonic()
        if self.clock is not None:
            self.clock.flush()
        at = replace(self.at, seconds_before=began - self.started)
        state.save(self.folder, self.recipe, self.dataset, at, self.network, self.optimizer, self.best_weights)
        self._saved = time.monotonic()
        self._saving = self._saved - began

    def _run_epoch(self) -> None:
        """Train on the batches of the epoch at work that are still to do, or until the time is over."""
        train, at = self.recipe.train, self.at
        self.network.train()
        for layer in frozen(self.network, self.recipe.optimizer).values():
            layer.eval()  # a frozen norm keeps its statistics
        now = table_at(self.recipe.schedule, at.epoch)
        factors = {**self.recipe.optimizer.rate_factors, **now.rate_factors}
        noise = self.recipe.augment.colour_noise if now.colour_noise is None else now.colour_noise
        changes = self.recipe.augment.model_copy(update={"colour_noise": noise})
        self._began = (time.monotonic(), at.seen)
        workers, together, alternate = self.recipe.data.workers, changes.together, changes.alternate
        for batch in epoch_batches(self.train, self.cuts, train.seed, at.epoch, at.batch, workers, together, alternate):
            if self._over():
                break
            set_rate(self.optimizer, self.rate, factors)
            self._step(batch, changes)
            at.batch += 1
            left = self._seconds_left()
            self.monitor.step(
                f"epoch {at.epoch}", at.batch, len(self.cuts), self.rate, at.loss_sum / at.seen, at.right / at.seen, left
            )
            self._heed()
            if time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS:
                self.save()

    def _step(self, batch: Batch, changes: Augment) -> None:
        """One step on one batch; chance comes from (seed, epoch, batch) alone."""
        train, at = self.recipe.train, self.at
        seed = int(np.random.SeedSequence([train.seed, at.epoch, at.batch]).generate_state(1, np.uint64)[0] >> 1)
        how = self.how.model_copy(update={"input": input_at(self.recipe, self._share(0.5), self.network.smallest)})
        while True:
            torch.manual_seed(seed)
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss, right = self._gradient(batch, changes, how)
                break
            except torch.OutOfMemoryError:
                self._halve(len(batch.targets))
        self.optimizer.step()
        count = len(batch.targets)
        at.seen += count
        at.loss_sum += loss * count
        at.right += right
        if self.clock is not None:
            self.clock.stepped(count)

    def _gradient(self, batch: Batch, changes: Augment, how: Preprocessing) -> tuple[float, int]:
        """Add the gradient of a batch, in `at.pieces` one after the other; return its loss and how many were right."""
        assert batch.draws is not None
        total, right, device = 0.0, 0, self.device
        pieces = self.at.pieces
        for images, all_targets, draws in zip(
            batch.images.chunk(pieces), batch.targets.chunk(pieces), batch.draws.chunk(pieces), strict=True
        ):
            targets = all_targets.to(device, non_blocking=True)
            x = training_input(images.to(device, non_blocking=True), draws.to(device), how, changes)
            with autocast(device, self.recipe.train.precision):
                logits = self.network(x, how.enlarge).float()
            loss = self.loss(logits, targets) * (len(targets) / len(batch.targets))
            value = loss.item()
            if not np.isfinite(value):
                self._diverged(value)
            torch.autograd.backward(loss)
            total += value
            right += int((logits.argmax(1) == targets).sum())
        return total, right

    def _halve(self, count: int) -> None:
        """Cut batches into twice as many pieces, after the device's memory was too small for one of `count` images.

        Raises:
            RunError: one image alone is too much.
        """
        before = -(-count // self.at.pieces)
        if before == 1:
            raise RunError(f"one image of {self.how.input} pixels a side is too much for the device: lower images.input")
        self.at.pieces *= 2
        if torch.accelerator.is_available():
            torch.accelerator.memory.empty_cache()
        self.monitor.say(
            f"the device's memory is too small for {before} images at once: from here on {-(-count // self.at.pieces)}, "
            "and their gradients are added up; a step stays that of the whole batch, but batch normalisation sees fewer images"
        )

    def _end_epoch(self) -> None:
        """Validate, remember the best weights, write a row of metrics, begin the next epoch."""
        at = self.at
        began, seen = self._began
        pace = (at.seen - seen) / max(1e-9, time.monotonic() - began)
        found = self.evaluate("val").to_json()
        row = {
            "epoch": at.epoch,
            "images": at.seen,
            "rate": self.rate,
            "train_loss": at.loss_sum / at.seen,
            "train_top1": at.right / at.seen,
            "val_loss": found["loss"],
            "val_top1": found["top1"],
            "val_top5": found["top5"],
            "seconds": time.monotonic() - self.started,
            "images_per_second": pace,
            **self.monitor.usage(),
        }
        at.history.append(row)
        if (found["top1"], -found["loss"]) > at.best:
            at.best, at.best_epoch = (found["top1"], -found["loss"]), at.epoch
            if self.recipe.train.keep == "best":
                self.best_weights = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        self._adapt(row)
        write_metrics(self.folder, at.history)
        if pattern := self.recipe.train.save_epochs:
            save_weights(self.folder.path / "epochs" / f"{pattern.format(epoch=at.epoch)}.safetensors", self.network)
        of_epochs = "" if self.recipe.train.minutes else f"/{self.recipe.train.epochs}"
        at.epoch, at.batch, at.seen, at.loss_sum, at.right = at.epoch + 1, 0, 0, 0.0, 0
        self.monitor.epoch(row, of_epochs, self._seconds_left())
        if (time.monotonic() - self._saved) * SHARE_FOR_CHECKPOINTS > self._saving and not self._over():
            self.save()

    @property
    def rate(self) -> float:
        """The learning rate of the step at work, before the factors of layers."""
        schedule, start = self.recipe.schedule, self.recipe.optimizer.rate
        if schedule.kind == "plateau":
            return float(self.at.plateau.get("rate", start))
        return rate_at(schedule, start, self._share(0.5), self.at.epoch)

    def _adapt(self, row: Mapping[str, Any]) -> None:
        """Let a plateau lower the rate, and early stopping end the training, after the epoch of `row`."""
        at, schedule, stop = self.at, self.recipe.schedule, self.recipe.stop
        figures = {**row, "val_error": 1 - row["val_top1"]}
        if schedule.kind == "plateau":
            state = {"rate": self.recipe.optimizer.rate, **at.plateau}
            plateau = Plateau(
                factor=schedule.factor, patience=schedule.patience, threshold=schedule.threshold, floor=schedule.floor, **state
            )
            plateau.update(figures[schedule.metric])
            at.plateau = {"rate": plateau.rate, "best": plateau.best, "waited": plateau.waited}
        if stop.patience:
            early = EarlyStop(stop.patience, **at.early_stop)
            at.ended = early.update(figures[stop.metric])
            at.early_stop = {"best": early.best, "waited": early.waited}
        at.ended |= bool(stop.train_error) and 1 - row["train_top1"] <= stop.train_error

    def _share(self, into_step: float = 0.0) -> float:
        """Return how much of the training is done, from 0 to 1: by the clock if the recipe names minutes, else by steps."""
        if self.clock is not None:
            return self.clock.share
        return (self._steps_done + into_step) / (self.recipe.train.epochs * len(self.cuts))

    @property
    def _steps_done(self) -> int:
        return (self.at.epoch - 1) * len(self.cuts) + self.at.batch

    def _over(self) -> bool:
        if self.clock is not None:
            self.clock.decide(self._steps_done)
        return self.at.ended or self._share() >= 1.0

    def _seconds_left(self) -> float:
        if self.clock is not None:
            return self.clock.seconds_left
        began, share = self._fit_began
        done = self._share()
        return (time.monotonic() - began) * (1 - done) / max(done - share, 1e-9)

    def _heed(self) -> None:
        """Save and stop, if a signal asks for it."""
        if self._stop.code is not None:
            self._save_and_stop(self._stop.code)

    def _save_and_stop(self, code: int) -> None:
        self.save()
        if self.best_weights:  # so that what was reached can be used meanwhile
            self._save_best()
        way_on = f"go on with: alexnet train --resume {quoted(self.folder.path)}"
        where = "after the last epoch" if not self.at.batch and self._over() else f"in epoch {self.at.epoch}"
        raise Interrupted(f"stopped {where}, all is saved; {way_on}", code)

    def _diverged(self, loss: float) -> None:
        saved = f"; the weights of epoch {self.at.best_epoch} are kept in {self.folder.path}" if self.best_weights else ""
        if self.best_weights:
            self._save_best()
        optimizer = self.recipe.optimizer
        muon = f" --set optimizer.muon={optimizer.muon / 3:.2g}" if optimizer.muon else ""
        raise DivergedError(
            f"the loss is {loss} in epoch {self.at.epoch}, batch {self.at.batch + 1}, and the step was not taken{saved}; "
            f"try a lower rate: --set optimizer.rate={optimizer.rate / 3:.2g}{muon}"
        )

    def _save_best(self) -> None:
        self.network.load_state_dict(self.best_weights)
        save_model(self.folder, self.network, self.card())


def write_metrics(folder: RunFolder, history: list[dict[str, Any]]) -> None:
    """Write `metrics.csv`, a row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder.metrics, text.getvalue())
