"""Forward and backward of one batch: the same in training and in the learning-rate finder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from alexnet.data.augment import training_input
from alexnet.data.batches import Batch, SplitImages, epoch_batches, epoch_bounds
from alexnet.errors import RecipeError, RunError
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast, is_out_of_memory, release_memory, resolve_precision
from alexnet.network.fast.fuse import use_bf16_gradients
from alexnet.progress import say
from alexnet.recipe import Augment, Preprocessing, Recipe
from alexnet.training.checkpoint import TrainingState
from alexnet.training.distributed import SINGLE_PROCESS, ProcessGroup
from alexnet.training.optimizer import Loss, build_optimizer, check_names, frozen, set_lr
from alexnet.training.parallel import Parallel, ParallelModel
from alexnet.training.schedule import epoch_settings, input_size_at


class Step:
    """Batches of a resolved recipe, and their gradients in a network.

    Attributes:
        bounds: where an epoch's images are cut into batches.
        share: this process's part of the network.
        optimizer: of that part.
    """

    def __init__(
        self,
        recipe: Recipe,
        preprocessing: Preprocessing,
        train: SplitImages,
        network: AlexNet,
        group: ProcessGroup = SINGLE_PROCESS,
        parallel: Parallel = "data",
        tell: Callable[[str], object] = say,
    ) -> None:
        """`train` are the training images; `tell` takes what people should know.

        Raises:
            RecipeError: the network or the batches cannot be divided so; a name in the recipe is no layer's.
        """
        self._recipe, self._preprocessing, self._train, self._tell = recipe, preprocessing, train, tell
        self._device = network.head.weight.device
        self.bounds = epoch_bounds(len(train), recipe.train)
        if (least := min(end - start for start, end in self.bounds)) < group.world_size:
            raise RecipeError(
                f"the smallest batch has {least} images, too few for {group.world_size} processes: raise train.batch_size"
            )
        self.model = ParallelModel(network, group, parallel, synchronised=recipe.train.synchronised_norm)
        if parallel == "towers" and recipe.optimizer.muon_lr:
            raise RecipeError("--parallel towers divides convolutions, which Muon needs whole: --set optimizer.muon_lr=0")
        self.optimizer = build_optimizer(self.model.network, recipe.optimizer)
        if resolve_precision(self._device, recipe.train.precision) == "bfloat16" and group.world_size == 1:
            use_bf16_gradients(network)
        for row in recipe.schedule.table:
            check_names(network, row.lr_scale, "schedule.table")
        self._loss = Loss(recipe.train, train.targets, network.head.out_features, self._device)

    def augmentation(self, epoch: int) -> Augment:
        """Return the random changes of the images of an epoch."""
        now = epoch_settings(self._recipe.schedule, epoch)
        noise = self._recipe.augment.colour_noise if now.colour_noise is None else now.colour_noise
        return self._recipe.augment.model_copy(update={"colour_noise": noise})

    def batches(self, state: TrainingState) -> Iterator[Batch]:
        """Put the network into training mode, and yield the batches of the current epoch that are still to do."""
        self.model.network.train()
        for layer in frozen(self.model.network, self._recipe.optimizer).values():
            layer.eval()  # a frozen norm keeps its statistics
        augment, data, bounds = self._recipe.augment, self._recipe.data, self.model.local_bounds(self.bounds)
        seed, together, alternate = self._recipe.train.seed, augment.together, augment.alternating_flip
        return epoch_batches(self._train, bounds, seed, state.epoch, state.batch, data.workers, together, alternate)

    def set_lr(self, lr: float, epoch: int) -> None:
        """Set the learning rate of each layer: `lr` times its factors in this epoch."""
        factors = epoch_settings(self._recipe.schedule, epoch).lr_scale
        set_lr(self.optimizer, lr, {**self._recipe.optimizer.lr_scale, **factors})

    def forward_backward(self, batch: Batch, augment: Augment, state: TrainingState, progress: float) -> tuple[float, float]:
        """Leave the gradient of the current batch in the network; return its mean loss, and how many images were right.

        Chance comes from (seed, epoch, batch) alone. `progress` is that of the training, from 0 to 1.

        Raises:
            RunError: the device's memory is too small for one image.
        """
        start, end = self.bounds[state.batch]
        entropy = [self._recipe.train.seed, state.epoch, state.batch]
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1
        side = input_size_at(self._recipe, progress, self.model.full_model.smallest)
        preprocessing = self._preprocessing.model_copy(update={"input": side})
        self.model.batch_size = end - start
        while True:
            torch.manual_seed(seed)
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss, correct = self._accumulate(batch, augment, preprocessing, state.accumulation_steps)
                break
            except RuntimeError as error:
                if self.model.group.world_size > 1 or not is_out_of_memory(error):
                    raise
            self._split_micro_batches(end - start, state)  # here, where the exception no longer holds the step's tensors
        loss, total_correct = self.model.sum(loss, correct)
        return loss, total_correct

    def _accumulate(self, batch: Batch, augment: Augment, preprocessing: Preprocessing, steps: int) -> tuple[float, int]:
        """Add up the gradients of a batch over `steps` micro-batches; return its loss and how many images were right.

        With other processes: of this one's part of the batch, and what it adds to the loss.
        """
        assert batch.draws is not None
        total, correct, device = 0.0, 0, self._device
        batch_targets = self.model.targets(batch)
        [normalizer] = self.model.sum(self._loss.normalizer(batch_targets))
        micro_batches: Iterator[tuple[Tensor, ...]] = zip(
            *(tensor.chunk(steps) for tensor in (batch.images, batch_targets, batch.draws)), strict=True
        )
        for images, some_targets, draws in micro_batches:
            targets = some_targets.to(device, non_blocking=True)
            x = training_input(images.to(device, non_blocking=True), draws.to(device), preprocessing, augment)
            with autocast(device, self._recipe.train.precision):
                logits = self.model.forward(x, preprocessing.scale_factor).float()
            loss = self._loss(logits, targets) * (self._loss.normalizer(some_targets) / normalizer)
            torch.autograd.backward(loss)

            total += loss.item()
            correct += int((logits.argmax(1) == targets).sum())
        return total, correct

    def _split_micro_batches(self, count: int, state: TrainingState) -> None:
        """Halve the micro-batches, after the device's memory was too small for one of a batch of `count` images.

        Raises:
            RunError: one image alone is too much.
        """
        before = -(-count // state.accumulation_steps)
        if before == 1:
            side = self._preprocessing.input
            raise RunError(f"one image of {side} pixels a side is too much for the device: lower images.input")
        state.accumulation_steps *= 2
        self.optimizer.zero_grad(set_to_none=True)
        release_memory()
        self._tell(
            f"the device's memory is too small for {before} images at once: from here on "
            f"{-(-count // state.accumulation_steps)}, and their gradients are added up; a step stays that of the whole batch, "
            "but batch normalisation sees fewer images"
        )
