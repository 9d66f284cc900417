"""Train a neighbour from nothing by the clock, and test it: the loop around `small_recipes`."""

from __future__ import annotations

import itertools
import math
import sys
import time

import numpy as np
import torch
from benchmarks.small_recipes import Neighbour, ResNet18, SpeedRecord
from torch import Tensor
from torch.nn.functional import cross_entropy

from alexnet.data.batches import Batch, batch_bounds, epoch_batches, ordered_batches
from alexnet.data.dataset import Dataset, open_dataset
from alexnet.data.preprocessing import to_input
from alexnet.data.sources import open_table
from alexnet.data.statistics import fill_statistics
from alexnet.inference.metrics import top_k
from alexnet.network.device import autocast, choose_device, to_device
from alexnet.progress import format_duration, say, track
from alexnet.recipe import Preprocessing, Recipe

BATCH, SAMPLE = 256, 1000  # images: per batch of an evaluation, and to prepare the network
RESERVE = 1.2  # time kept for the evaluation, relative to its estimate
SHARE = 0.25  # of the time: if the evaluation of all views takes more, only the image as it is is evaluated
SECONDS_BETWEEN_LINES = 20.0

Kind = type[SpeedRecord] | type[ResNet18]


def stored_at(recipe: Recipe, side: int) -> Recipe:
    """Return the recipe for images of `side` pixels."""
    return recipe.with_settings({"images.cache_size": side, "images.input": side, "images.upscale": 1})


def opened(recipe: Recipe) -> tuple[Dataset, Preprocessing]:
    """Open the dataset of a recipe, split as the recipe says and normalised by channel."""
    table = open_table(recipe.data.dataset, recipe.data.root, settings=recipe.data)
    dataset = open_dataset(table, recipe.images.resolved(), recipe.data.workers, recipe.data)
    return dataset, fill_statistics(recipe, dataset.images("train"))[0].images.resolved()


class Session:
    """The training of a neighbour until `end`, a `time.monotonic()`, the evaluation of the test set included."""

    def __init__(self, kind: Kind, recipe: Recipe, seed: int, end: float) -> None:
        torch.manual_seed(seed)
        self.dataset, self.preprocessing = opened(stored_at(recipe, kind.stored))
        self.train, self.test = self.dataset.images("train"), self.dataset.images("test")
        self.device, self.workers, self.seed, self.end = choose_device(), recipe.data.workers, seed, end
        self.bounds = batch_bounds(len(self.train), kind.batch)
        sample = self.train.take(np.random.default_rng(seed).permutation(len(self.train))[:SAMPLE]).images
        size = -(-len(self.train) // len(self.bounds))
        self.way: Neighbour = kind(len(self.dataset.table.labels), to_input(sample, self.preprocessing), size)
        to_device(self.way.network, self.device)
        self.all_views = True

    def fit(self) -> tuple[int, float]:
        """Train; return how many images the network saw, and the seconds."""
        reserved = self.reserved_seconds()
        began = told = time.monotonic()
        available, seen, progress = self.end - began - reserved, 0, 0.0
        if available <= 0:
            sys.exit(f"{self.way.name} has no time left to train, as its evaluation takes {reserved:.0f} s: add minutes")
        for epoch in itertools.count(1):
            alternate = self.way.alternating_flip
            for batch in epoch_batches(self.train, self.bounds, self.seed, epoch, workers=self.workers, alternate=alternate):
                now = time.monotonic()
                progress = (now - began) / available
                if progress >= 1:
                    break
                loss = self.step(batch, progress)
                seen += len(batch.targets)
                if not math.isfinite(loss):
                    sys.exit(f"{self.way.name} diverged: its loss is {loss} after {seen:,} images")
                if now - told > SECONDS_BETWEEN_LINES:
                    told = now
                    say(f"{self.way.name}, epoch {epoch}: loss {loss:.3f}, {format_duration(self.end - now)} left")
            self.way.end_epoch()
            if progress >= 1:
                break
        return seen, time.monotonic() - began

    def step(self, batch: Batch, progress: float) -> float:
        """Take a step and return its loss."""
        way, targets = self.way, batch.targets.to(self.device)
        assert batch.draws is not None
        way.network.train()
        way.before_step(progress)
        inputs = way.inputs(batch.images.to(self.device), batch.draws, self.preprocessing)
        with autocast(self.device, "auto"):
            logits = way.network(inputs).float()
        loss = cross_entropy(logits, targets, label_smoothing=way.smoothing)
        way.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        way.optimizer.step()
        way.after_step(progress)
        return loss.item()

    @torch.inference_mode()
    def logits(self, images: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return the logits of images, N S S 3, as the mean of all views and of one, N x classes, and the number of views."""
        self.way.network.eval()
        x = to_input(images.to(self.device), self.preprocessing)
        views = list(self.way.views(x)) if self.all_views else [(1.0, x)]
        with autocast(self.device, "auto"):
            outputs = [self.way.network(view).float().cpu() for _, view in views]
        mean = sum((weight * output for (weight, _), output in zip(views, outputs, strict=True)), torch.zeros(()))
        return mean, outputs[0], len(views)

    def reserved_seconds(self) -> float:
        """Choose the views by the time that they take on a few training images; return the time to keep for the test set."""
        sample = self.train.take(np.arange(min(BATCH, len(self.train)))).images
        self.all_views = False
        self.logits(sample)  # the first time is slower
        began = time.monotonic()
        self.logits(sample)
        one_view = RESERVE * (time.monotonic() - began) * len(self.test) / len(sample)
        views = len(list(self.way.views(to_input(sample, self.preprocessing))))
        self.all_views = one_view * views <= SHARE * (self.end - time.monotonic())
        return one_view * (views if self.all_views else 1) + 1

    def evaluate(self) -> tuple[float, float, int]:
        """Return the accuracy on the test set, with all views and with one, and the number of views."""
        steps = len(batch_bounds(len(self.test), BATCH))
        batches = track(ordered_batches(self.test, BATCH, self.workers), "Evaluating test", steps)
        mean, one, views = zip(*(self.logits(batch.images) for batch in batches), strict=True)
        top1, one_view = (top_k(torch.cat(outputs).numpy(), self.test.targets, 1) for outputs in (mean, one))
        return top1, one_view, views[0]
