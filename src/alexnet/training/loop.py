"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from alexnet.data.augment import training_input
from alexnet.data.batches import Batch, epoch_batches, epoch_cuts
from alexnet.data.dataset import Dataset
from alexnet.data.images import Preprocessing
from alexnet.errors import DivergedError, Interrupted, RecipeError, RunError, quoted
from alexnet.measure.evaluate import Evaluation, evaluate_split
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast, choose_precision, is_out_of_memory, release_memory
from alexnet.network.fused import narrow_gradients
from alexnet.recipe import Augment, Recipe
from alexnet.run import Card, RunFolder, save_model, save_weights, write_metrics
from alexnet.training import checkpoint, state
from alexnet.training.budget import Budget
from alexnet.training.monitor import Monitor
from alexnet.training.optimizer import Loss, build_optimizer, check_names, frozen, set_rate
from alexnet.training.parallel import Parallel, Share
from alexnet.training.processes import ALONE, Group
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
        group: Group = ALONE,
        parallel: Parallel = "data",
    ) -> None:
        """`started` is the `time.monotonic()` that `train.minutes` counts from; the network is on its device.

        Of the processes of `group`, the first writes into the folder.

        Raises:
            RecipeError: the network or the batches cannot be divided so.
        """
        self.recipe, self.dataset, self.how, self.network = recipe, dataset, how, network
        self.folder, self.monitor = folder, monitor
        self.device = next(network.parameters()).device
        self.train, self.val = dataset.images("train"), dataset.images("val")
        self.cuts = epoch_cuts(len(self.train), recipe.train)
        if (least := min(end - start for start, end in self.cuts)) < group.world:
            raise RecipeError(f"the smallest batch has {least} images, too few for {group.world} processes: raise train.batch")
        self.group = group
        self.share = Share(network, group, parallel, synchronised=recipe.train.synchronised_norm)
        if parallel == "towers" and recipe.optimizer.muon:
            raise RecipeError("--parallel towers divides convolutions, which Muon needs whole: --set optimizer.muon=0")
        self.optimizer = build_optimizer(self.share.network, recipe.optimizer)
        if choose_precision(self.device, recipe.train.precision) == "bfloat16" and group.world == 1:
            narrow_gradients(network)
        for row in recipe.schedule.table:
            check_names(network, row.rate_factors, "schedule.table")
        self.loss = Loss(recipe.train, self.train.targets, len(dataset.table.labels), self.device)
        self.at = Progress()
        self.best_weights: checkpoint.Tensors = {}
        evaluated = 2 * len(self.val) + len(dataset.table.rows("test"))
        self.budget = Budget(recipe.train, len(self.cuts), evaluated, folder.journal, started, group)
        self._stop, self._code, self._wish = StopRequest(), 0, False  # what all agreed on: to stop with a code, to save
        self._saved, self._saving = time.monotonic(), 0.0  # when, and the seconds that it took
        self._began = (0.0, 0)  # when this epoch began, and how many of its images were done then

    def fit(self, stop: StopRequest) -> None:
        """Train until the recipe's end; the network then holds the weights that the recipe keeps.

        Raises:
            DivergedError: the loss is not finite.
            Interrupted: `stop` noted a signal; everything is saved.
        """
        self._stop = stop
        self.budget.begin(self.at)
        while self.at.batch or not self.budget.over(self.at):  # the last epoch may have been stopped while it was evaluated
            self._run_epoch()
            self._end_epoch()
        self.share.give()
        if self.recipe.train.keep == "best" and self.at.best_epoch:
            self.network.load_state_dict(self.group.told_tensors(self.best_weights))

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
            # Alone, a signal is heeded at once; of several processes all must, so it waits for the next step.
            between=self._heed if self.group.world == 1 else lambda: None,
            part=self.group.part,
            joined=lambda logits, total: self.group.gather(logits, 0, total),
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
        found = state.load(self.folder, self.recipe, self.dataset) if self.group.first else None
        at, tensors = found or (None, {kind: {} for kind in state.KINDS})
        told = self.group.told(None if at is None else asdict(at))
        if told is None:
            return False
        self.at = Progress(**told)
        if self.group.world > 1:
            self.at.pieces = 1
        self.budget.take_up(self.at.seconds_before)
        network, momentum = (self.group.told_tensors(tensors[kind]) for kind in ("network", "momentum"))
        state.put_back(network, momentum, self.share, self.optimizer, self.folder.path)
        self.best_weights = tensors["best"]
        return True

    def save(self) -> None:
        """Write a checkpoint: weights, momentum, the best weights, and where the training stands.

        Raises:
            RunError: it cannot be written; the one before is intact.
        """
        began = time.monotonic()
        self.budget.flush()
        at = replace(self.at, seconds_before=began - self.budget.started)
        self.share.give()
        momentum = state.momentum(self.share, self.optimizer)
        if self.group.first:
            state.save(self.folder, self.recipe, self.dataset, at, self.network, momentum, self.best_weights)
        self._saved = time.monotonic()
        self._saving = self._saved - began

    def _run_epoch(self) -> None:
        """Train on the batches of the epoch at work that are still to do, or until the time is over."""
        train, at = self.recipe.train, self.at
        self.share.network.train()
        for layer in frozen(self.share.network, self.recipe.optimizer).values():
            layer.eval()  # a frozen norm keeps its statistics
        now = table_at(self.recipe.schedule, at.epoch)
        factors = {**self.recipe.optimizer.rate_factors, **now.rate_factors}
        noise = self.recipe.augment.colour_noise if now.colour_noise is None else now.colour_noise
        changes = self.recipe.augment.model_copy(update={"colour_noise": noise})
        self._began = (time.monotonic(), at.seen)
        workers, together, alternate = self.recipe.data.workers, changes.together, changes.alternate
        cuts = self.share.cuts(self.cuts)
        for batch in epoch_batches(self.train, cuts, train.seed, at.epoch, at.batch, workers, together, alternate):
            if self.budget.over(at):
                break
            set_rate(self.optimizer, self.rate, factors)
            self._step(batch, changes)
            at.batch += 1
            figures = (self.rate, at.loss_sum / at.seen, at.right / at.seen)
            self.monitor.step(f"epoch {at.epoch}", at.batch, len(self.cuts), *figures, self.budget.seconds_left(at))
            self._heed()
            if self._wish:
                self.save()

    def _step(self, batch: Batch, changes: Augment) -> None:
        """One step on one batch, or this process's part of it; chance comes from (seed, epoch, batch) alone."""
        train, at = self.recipe.train, self.at
        seed = int(np.random.SeedSequence([train.seed, at.epoch, at.batch]).generate_state(1, np.uint64)[0] >> 1)
        how = self.how.model_copy(update={"input": input_at(self.recipe, self.budget.done(at, 0.5), self.network.smallest)})
        start, end = self.cuts[at.batch]
        self.share.images = count = end - start
        while True:
            torch.manual_seed(seed)
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss, right = self._gradient(batch, changes, how)
                break
            except RuntimeError as error:
                if self.group.world > 1 or not is_out_of_memory(error):
                    raise
            self._halve(count)  # here, where the exception no longer holds on to the step's tensors
        loss, hits = self.share.sum(loss, right)
        if not np.isfinite(loss):
            self._diverged(loss, f"batch {at.batch + 1}, and the step was not taken")
        self.optimizer.step()
        self._agree()
        at.seen += count
        at.loss_sum += loss * count
        at.right += round(hits)
        self.budget.stepped(count)

    def _gradient(self, batch: Batch, changes: Augment, how: Preprocessing) -> tuple[float, int]:
        """Add the gradient of a batch, in `at.pieces` one after the other; return its loss and how many were right.

        With other processes: of this one's part of the batch, and what it adds to the loss.
        """
        assert batch.draws is not None
        total, right, device = 0.0, 0, self.device
        wanted = self.share.targets(batch)
        [whole] = self.share.sum(self.loss.total(wanted))
        pieces = (tensor.chunk(self.at.pieces) for tensor in (batch.images, wanted, batch.draws))
        for images, some, draws in zip(*pieces, strict=True):
            targets = some.to(device, non_blocking=True)
            x = training_input(images.to(device, non_blocking=True), draws.to(device), how, changes)
            with autocast(device, self.recipe.train.precision):
                logits = self.share.forward(x, how.enlarge).float()
            loss = self.loss(logits, targets) * (self.loss.total(some) / whole)
            torch.autograd.backward(loss)
            total += loss.item()
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
        self.optimizer.zero_grad(set_to_none=True)
        release_memory()
        self.monitor.say(
            f"the device's memory is too small for {before} images at once: from here on {-(-count // self.at.pieces)}, "
            "and their gradients are added up; a step stays that of the whole batch, but batch normalisation sees fewer images"
        )

    def _end_epoch(self) -> None:
        """Validate, remember the best weights, write a row of metrics, begin the next epoch."""
        at = self.at
        began, seen = self._began
        pace = (at.seen - seen) / max(1e-9, time.monotonic() - began)
        self.share.give()
        validation = self.evaluate("val")
        if not np.isfinite(validation.loss):
            self._diverged(validation.loss, "in validation")
        found = validation.to_json()
        row = {
            "epoch": at.epoch,
            "images": at.seen,
            "rate": self.rate,
            "train_loss": at.loss_sum / at.seen,
            "train_top1": at.right / at.seen,
            "val_loss": found["loss"],
            "val_top1": found["top1"],
            "val_top5": found["top5"],
            "seconds": time.monotonic() - self.budget.started,
            "images_per_second": pace,
            **self.monitor.usage(),
        }
        at.history.append(row)
        if (found["top1"], -found["loss"]) > at.best:
            at.best, at.best_epoch = (found["top1"], -found["loss"]), at.epoch
            if self.recipe.train.keep == "best" and self.group.first:
                self.best_weights = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        self._adapt(row)
        if self.group.first:
            write_metrics(self.folder, at.history)
            if pattern := self.recipe.train.save_epochs:
                save_weights(self.folder.path / "epochs" / f"{pattern.format(epoch=at.epoch)}.safetensors", self.network)
        of_epochs = "" if self.recipe.train.minutes else f"/{self.recipe.train.epochs}"
        at.epoch, at.batch, at.seen, at.loss_sum, at.right = at.epoch + 1, 0, 0, 0.0, 0
        self.monitor.epoch(row, of_epochs, self.budget.seconds_left(at))
        enough = (time.monotonic() - self._saved) * SHARE_FOR_CHECKPOINTS > self._saving
        if self.group.agreed(enough) and not self.budget.over(at):
            self.save()

    @property
    def rate(self) -> float:
        """The learning rate of the step at work, before the factors of layers."""
        schedule, start = self.recipe.schedule, self.recipe.optimizer.rate
        if schedule.kind == "plateau":
            return float(self.at.plateau.get("rate", start))
        return rate_at(schedule, start, self.budget.done(self.at, 0.5), self.at.epoch)

    def _adapt(self, row: Mapping[str, Any]) -> None:
        """Let a plateau lower the rate, and early stopping end the training, after the epoch of `row`."""
        at, schedule, stop = self.at, self.recipe.schedule, self.recipe.stop
        figures = {**row, "val_error": 1 - row["val_top1"]}
        if schedule.kind == "plateau":
            settings = schedule.model_dump(include={"factor", "patience", "threshold", "floor"})
            plateau = Plateau(**{"rate": self.recipe.optimizer.rate, **settings, **at.plateau})
            plateau.update(figures[schedule.metric])
            at.plateau = {"rate": plateau.rate, "best": plateau.best, "waited": plateau.waited}
        if stop.patience:
            early = EarlyStop(stop.patience, **at.early_stop)
            at.ended = early.update(figures[stop.metric])
            at.early_stop = {"best": early.best, "waited": early.waited}
        at.ended |= bool(stop.train_error) and 1 - row["train_top1"] <= stop.train_error

    def _agree(self) -> None:
        """Let all processes know of a signal that one of them noted, and of the first one's wish to save."""
        late = time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        code = self._stop.code
        interrupted, terminated, saving = self.group.sum(code == 130, code == 143, late and self.group.first)
        self._code, self._wish = 143 if terminated else 130 if interrupted else 0, bool(saving)

    def _heed(self) -> None:
        """Save and stop, if a signal asks for it."""
        code = self._stop.code if self.group.world == 1 else self._code
        if code:
            self._save_and_stop(code)

    def _save_and_stop(self, code: int) -> None:
        self.save()
        if self.best_weights:  # so that what was reached can be used meanwhile
            self._save_best()
        way_on = f"go on with: alexnet train --resume {quoted(self.folder.path)}"
        where = "after the last epoch" if not self.at.batch and self.budget.over(self.at) else f"in epoch {self.at.epoch}"
        raise Interrupted(f"stopped {where}, all is saved; {way_on}", code)

    def _diverged(self, loss: float, where: str) -> None:
        saved = f"; the weights of epoch {self.at.best_epoch} are kept in {self.folder.path}" if self.best_weights else ""
        if self.best_weights:
            self._save_best()
        optimizer = self.recipe.optimizer
        muon = f" --set optimizer.muon={optimizer.muon / 3:.2g}" if optimizer.muon else ""
        raise DivergedError(
            f"the loss is {loss} in epoch {self.at.epoch}, {where}{saved}; "
            f"try a lower rate: --set optimizer.rate={optimizer.rate / 3:.2g}{muon}"
        )

    def _save_best(self) -> None:
        self.network.load_state_dict(self.best_weights)
        save_model(self.folder, self.network, self.card())
