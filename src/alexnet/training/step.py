"""Forward and backward of one batch: the same for a training and for the search for its rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from alexnet.data.augment import training_input
from alexnet.data.batches import Batch, Images, epoch_batches, epoch_cuts
from alexnet.data.images import Preprocessing
from alexnet.errors import RecipeError, RunError
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast, choose_precision, is_out_of_memory, release_memory
from alexnet.network.fused import narrow_gradients
from alexnet.progress import say
from alexnet.recipe import Augment, Recipe
from alexnet.training.optimizer import Loss, build_optimizer, check_names, frozen, set_rate
from alexnet.training.parallel import Parallel, Share
from alexnet.training.processes import ALONE, Group
from alexnet.training.schedule import input_at, table_at
from alexnet.training.state import Progress


class Step:
    """Batches of a resolved recipe, and their gradients in a network.

    Attributes:
        cuts: where an epoch's images are cut into batches.
        share: this process's part of the network.
        optimizer: of that part.
    """

    def __init__(
        self,
        recipe: Recipe,
        how: Preprocessing,
        train: Images,
        network: AlexNet,
        group: Group = ALONE,
        parallel: Parallel = "data",
        tell: Callable[[str], object] = say,
    ) -> None:
        """`train` are the training images; `tell` takes what people should know.

        Raises:
            RecipeError: the network or the batches cannot be divided so; a name in the recipe is no layer's.
        """
        self._recipe, self._how, self._train, self._tell = recipe, how, train, tell
        self._device = network.head.weight.device
        self.cuts = epoch_cuts(len(train), recipe.train)
        if (least := min(end - start for start, end in self.cuts)) < group.world:
            raise RecipeError(f"the smallest batch has {least} images, too few for {group.world} processes: raise train.batch")
        self.share = Share(network, group, parallel, synchronised=recipe.train.synchronised_norm)
        if parallel == "towers" and recipe.optimizer.muon:
            raise RecipeError("--parallel towers divides convolutions, which Muon needs whole: --set optimizer.muon=0")
        self.optimizer = build_optimizer(self.share.network, recipe.optimizer)
        if choose_precision(self._device, recipe.train.precision) == "bfloat16" and group.world == 1:
            narrow_gradients(network)
        for row in recipe.schedule.table:
            check_names(network, row.rate_factors, "schedule.table")
        self._loss = Loss(recipe.train, train.targets, network.head.out_features, self._device)

    def changes(self, epoch: int) -> Augment:
        """Return the random changes of the images of an epoch."""
        now = table_at(self._recipe.schedule, epoch)
        noise = self._recipe.augment.colour_noise if now.colour_noise is None else now.colour_noise
        return self._recipe.augment.model_copy(update={"colour_noise": noise})

    def batches(self, at: Progress) -> Iterator[Batch]:
        """Let the network train, and yield the batches of the epoch at work that are still to do."""
        self.share.network.train()
        for layer in frozen(self.share.network, self._recipe.optimizer).values():
            layer.eval()  # a frozen norm keeps its statistics
        changes, data, cuts = self._recipe.augment, self._recipe.data, self.share.cuts(self.cuts)
        seed, together, alternate = self._recipe.train.seed, changes.together, changes.alternate
        return epoch_batches(self._train, cuts, seed, at.epoch, at.batch, data.workers, together, alternate)

    def set_rate(self, rate: float, epoch: int) -> None:
        """Give all layers their rates, of which `rate` is the recipe's `optimizer.rate`."""
        factors = table_at(self._recipe.schedule, epoch).rate_factors
        set_rate(self.optimizer, rate, {**self._recipe.optimizer.rate_factors, **factors})

    def gradient(self, batch: Batch, changes: Augment, at: Progress, done: float) -> tuple[float, float]:
        """Leave the gradient of the batch at work in the network; return its loss, and how many of its images were right.

        Chance comes from (seed, epoch, batch) alone. `done` is how much of the training is, from 0 to 1.

        Raises:
            RunError: the device's memory is too small for one image.
        """
        train, start_and_end = self._recipe.train, self.cuts[at.batch]
        seed = int(np.random.SeedSequence([train.seed, at.epoch, at.batch]).generate_state(1, np.uint64)[0]) >> 1
        side = input_at(self._recipe, done, self.share.whole.smallest)
        how = self._how.model_copy(update={"input": side})
        self.share.images = count = start_and_end[1] - start_and_end[0]
        while True:
            torch.manual_seed(seed)
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss, right = self._pieces(batch, changes, how, at.pieces)
                break
            except RuntimeError as error:
                if self.share.group.world > 1 or not is_out_of_memory(error):
                    raise
            self._halve(count, at)  # here, where the exception no longer holds on to the step's tensors
        loss, hits = self.share.sum(loss, right)
        return loss, hits

    def _pieces(self, batch: Batch, changes: Augment, how: Preprocessing, pieces: int) -> tuple[float, int]:
        """Add the gradient of a batch, in `pieces` one after the other; return its loss and how many were right.

        With other processes: of this one's part of the batch, and what it adds to the loss.
        """
        assert batch.draws is not None
        total, right, device = 0.0, 0, self._device
        wanted = self.share.targets(batch)
        [whole] = self.share.sum(self._loss.total(wanted))
        parts: Iterator[tuple[Tensor, ...]] = zip(
            *(tensor.chunk(pieces) for tensor in (batch.images, wanted, batch.draws)), strict=True
        )
        for images, some, draws in parts:
            targets = some.to(device, non_blocking=True)
            x = training_input(images.to(device, non_blocking=True), draws.to(device), how, changes)
            with autocast(device, self._recipe.train.precision):
                logits = self.share.forward(x, how.enlarge).float()
            loss = self._loss(logits, targets) * (self._loss.total(some) / whole)
            torch.autograd.backward(loss)
            total += loss.item()
            right += int((logits.argmax(1) == targets).sum())
        return total, right

    def _halve(self, count: int, at: Progress) -> None:
        """Cut batches into twice as many pieces, after the device's memory was too small for one of `count` images.

        Raises:
            RunError: one image alone is too much.
        """
        before = -(-count // at.pieces)
        if before == 1:
            raise RunError(f"one image of {self._how.input} pixels a side is too much for the device: lower images.input")
        at.pieces *= 2
        self.optimizer.zero_grad(set_to_none=True)
        release_memory()
        self._tell(
            f"the device's memory is too small for {before} images at once: from here on {-(-count // at.pieces)}, "
            "and their gradients are added up; a step stays that of the whole batch, but batch normalisation sees fewer images"
        )
