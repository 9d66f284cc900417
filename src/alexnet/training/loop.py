"""The training loop."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from alexnet.data.augment import training_input
from alexnet.data.batches import Batch, epoch_batches, parts
from alexnet.data.dataset import Dataset
from alexnet.data.images import Preprocessing
from alexnet.errors import DivergedError, Interrupted, RecipeError
from alexnet.measure.evaluate import Evaluation, evaluate_split
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast, choose_precision
from alexnet.network.fused import narrow_gradients
from alexnet.recipe import Augment, Recipe
from alexnet.run import Card, RunFolder, save_model, save_weights, write_text
from alexnet.training import checkpoint
from alexnet.training.monitor import Monitor
from alexnet.training.optimizer import build_loss, build_optimizer, check_names, frozen, set_rate
from alexnet.training.schedule import EarlyStop, Plateau, input_at, rate_at, table_at
from alexnet.training.stop import StopRequest

SECONDS_BETWEEN_CHECKPOINTS = 120.0
STEPS_TO_WARM_UP = 3  # they also find places in memory and plans of their operations


@dataclass
class Progress:
    """Where a training stands, beside its tensors; kept in the checkpoint."""

    epoch: int = 1  # the one at work
    batch: int = 0  # of it, done
    seen: int = 0  # images of it
    loss_sum: float = 0.0
    right: int = 0
    seconds_before: float = 0.0  # in earlier sessions
    prelude: float | None = None  # seconds of the first session before its first step: decoding and the like
    best_epoch: int = 0
    best: tuple[float, float] = (-1.0, 0.0)  # top-1 of the best epoch, minus its loss
    plateau: dict[str, Any] = field(default_factory=dict)  # where `Plateau` and `EarlyStop` stand
    early_stop: dict[str, Any] = field(default_factory=dict)
    ended: bool = False  # early
    history: list[dict[str, Any]] = field(default_factory=list)


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
        self._saved = time.monotonic()
        self._began = (0.0, 0)  # when this epoch began, and how many of its images were done then
        self._ended = False
        self._steps = self._images = 0  # of this session
        self._paced: tuple[float, int] | None = None  # when its first steps were over, and the images of them
        self._fit_began = (0.0, 0.0)  # when training began or was taken up, and the share of it that was done then

    def fit(self, stop: StopRequest) -> None:
        """Train until the recipe's end; the network then holds the weights that the recipe keeps.

        Raises:
            DivergedError: the loss is not finite.
            Interrupted: `stop` noted a signal; everything is saved.
        """
        if self.at.prelude is None:
            self.at.prelude = time.monotonic() - self.started
        self._fit_began = (time.monotonic(), self._share())
        while not self._over():
            self._run_epoch(stop)
            self._end_epoch()
            if stop.code is not None and not self._over():
                self._save_and_stop(stop.code)
        if self.recipe.train.keep == "best" and self.best_weights:
            self.network.load_state_dict(self.best_weights)

    def evaluate(self, split: str, temperature: float = 1.0) -> Evaluation:
        """Return the network's evaluation on a split."""
        precision, workers = self.recipe.train.precision, self.recipe.data.workers
        return evaluate_split(
            self.network, self.dataset, split, self.how, precision=precision, workers=workers, temperature=temperature
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
        """Take up the last checkpoint; False where there is none."""
        found = checkpoint.load(self.folder.path)
        if found is None:
            return False
        tensors, state = found
        self.at = Progress(**{**state, "best": tuple(state["best"])})
        self.started -= self.at.seconds_before
        self.at.prelude = self.at.prelude or 0.0
        kinds: dict[str, checkpoint.Tensors] = {"network": {}, "momentum": {}, "best": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            kinds[kind][rest] = tensor
        self.network.load_state_dict(kinds["network"])
        for name, parameter in self.network.named_parameters():
            if name in kinds["momentum"]:
                momentum = torch.empty_like(parameter).copy_(kinds["momentum"][name])
                self.optimizer.state[parameter]["momentum_buffer"] = momentum
        self.best_weights = kinds["best"]
        return True

    def save(self) -> None:
        """Write a checkpoint: weights, momentum, the best weights, and where the training stands."""
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.network.named_parameters()
            if parameter in self.optimizer.state
        }
        kinds = {"network": self.network.state_dict(), "momentum": momentum, "best": self.best_weights}
        all_tensors = ((f"{kind}/{name}", tensor) for kind, named in kinds.items() for name, tensor in named.items())
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in all_tensors}
        state = {**asdict(self.at), "seconds_before": time.monotonic() - self.started}
        checkpoint.save(self.folder.path, tensors, state)
        self._saved = time.monotonic()

    def _run_epoch(self, stop: StopRequest) -> None:
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
            set_rate(self.optimizer, self.rate, factors)
            self._step(batch, changes)
            at.batch += 1
            left = self._seconds_left()
            self.monitor.step(
                f"epoch {at.epoch}", at.batch, len(self.cuts), self.rate, at.loss_sum / at.seen, at.right / at.seen, left
            )
            if stop.code is not None and at.batch < len(self.cuts):
                self._save_and_stop(stop.code)
            if self._over():
                break

    def _step(self, batch: Batch, changes: Augment) -> None:
        """One step on one batch; chance comes from (seed, epoch, batch) alone."""
        train, at, device = self.recipe.train, self.at, self.device
        torch.manual_seed(int(np.random.SeedSequence([train.seed, at.epoch, at.batch]).generate_state(1, np.uint64)[0] >> 1))
        assert batch.draws is not None
        images, targets = batch.images.to(device, non_blocking=True), batch.targets.to(device, non_blocking=True)
        how = self.how.model_copy(update={"input": input_at(self.recipe, self._share(0.5), self.network.smallest)})
        x = training_input(images, batch.draws.to(device), how, changes)
        with autocast(device, train.precision):
            logits = self.network(x, how.enlarge).float()
        loss = self.loss(logits, targets)
        value = loss.item()
        if not np.isfinite(value):
            self._diverged(value)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        at.seen += len(targets)
        self._steps, self._images = self._steps + 1, self._images + len(targets)
        if self._steps == STEPS_TO_WARM_UP:
            self._paced = (time.monotonic(), self._images)
        at.loss_sum += value * len(targets)
        at.right += int((logits.argmax(1) == targets).sum())

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
        if time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS and not self._over():
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

    def _share(self, into_step: float = 0.0) -> float:
        """Return how much of the training is done, from 0 to 1: by the clock if the recipe names minutes, else by steps."""
        at, train = self.at, self.recipe.train
        if train.minutes is None:
            return ((at.epoch - 1) * len(self.cuts) + at.batch + into_step) / (train.epochs * len(self.cuts))
        prelude = at.prelude or 0.0
        whole = train.minutes * 60 - self._reserve() - prelude
        return min(1.0, (time.monotonic() - self.started - prelude) / max(1.0, whole))

    def _reserve(self) -> float:
        """Return the seconds to keep for evaluating at the end, by this session's pace: an image takes 0.4 of a step's.

        The first steps do not count, as they are slow; and never more than half of the time is kept.
        """
        assert self.recipe.train.minutes is not None
        pace = 0.0
        if self._paced is not None and self._steps > STEPS_TO_WARM_UP:
            began, images = self._paced
            pace = (time.monotonic() - began) / max(1, self._images - images)
        images = 2 * len(self.val) + len(self.dataset.table.rows("test"))
        return min(3.0 + 0.4 * pace * images, self.recipe.train.minutes * 30)

    def _over(self) -> bool:
        self._ended = self._ended or self.at.ended or self._share() >= 1.0  # for good: the reserve moves with the pace
        return self._ended

    def _seconds_left(self) -> float:
        now, minutes = time.monotonic(), self.recipe.train.minutes
        if minutes is not None:
            return minutes * 60 - (now - self.started)
        began, share = self._fit_began
        done = self._share()
        return (now - began) * (1 - done) / max(done - share, 1e-9)

    def _save_and_stop(self, code: int) -> None:
        self.save()
        if self.best_weights:  # so that what was reached can be used meanwhile
            self._save_best()
        way_on = f"go on with: alexnet train --resume {self.folder.path}"
        raise Interrupted(f"stopped in epoch {self.at.epoch}, all is saved; {way_on}", code)

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
