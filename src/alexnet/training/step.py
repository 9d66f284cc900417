"""The forward and backward pass of a training step, shared by training and the learning-rate finder."""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from alexnet.data.augment import by_name, training_input
from alexnet.data.batches import Batch, SplitImages, epoch_batches, epoch_bounds
from alexnet.data.mixing import mix_targets, mixture
from alexnet.data.resident import ResidentImages, hold
from alexnet.errors import RecipeError, RunError, counted
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast, is_out_of_memory, release_memory, resolve_precision, send
from alexnet.network.fast.fuse import use_bf16_gradients
from alexnet.progress import say
from alexnet.recipe import Augment, Preprocessing, Recipe
from alexnet.training.checkpoint import TrainingState
from alexnet.training.compiled import compile_network
from alexnet.training.distributed import SINGLE, ProcessGroup
from alexnet.training.frozen import FrozenOutputs
from alexnet.training.loss_scale import LossScale
from alexnet.training.optimizer import Loss, build_optimizer, frozen_layers, set_lr, with_our_names
from alexnet.training.parallel import Parallel, ParallelModel
from alexnet.training.schedule import epoch_settings, input_size_at


class Step:
    """Everything that a training step needs: batches, augmentation, network, loss and optimizer."""

    def __init__(
        self,
        recipe: Recipe,
        preprocessing: Preprocessing,
        train: SplitImages,
        network: AlexNet,
        group: ProcessGroup = SINGLE,
        parallel: Parallel = "data",
        log: Callable[[str], object] = say,
    ) -> None:
        """`train` are the training images; `log` takes messages to the user."""
        self.preprocessing, self._log = preprocessing, log
        self._device = network.head.weight.device
        # Replaced once the frozen layers' outputs are known.
        self.images: SplitImages | ResidentImages | FrozenOutputs = hold(train, self._device)
        self.bounds = epoch_bounds(len(train), recipe.train)  # start and end of each batch in an epoch's images
        if (smallest := min(end - start for start, end in self.bounds)) < group.world_size:
            few = f"{counted(smallest, 'image')}, too few for {counted(group.world_size, 'process')}"
            raise RecipeError(f"the smallest batch has {few}: raise train.batch_size")
        self.model = ParallelModel(network, group, parallel, synchronised=recipe.train.synchronised_norm)
        if parallel == "towers" and recipe.optimizer.muon_lr:
            raise RecipeError("--parallel towers divides convolutions, which Muon needs whole: --set optimizer.muon_lr=0")
        self.recipe = with_our_names(recipe, network, log)
        if recipe.train.epochs:
            self.optimizer  # noqa: B018 - built here, so that it checks the recipe
        precision = resolve_precision(self._device, recipe.train.precision)
        self._compiled = compile_network(network, self._device, group.world_size) if recipe.train.compile else None
        if precision == "bfloat16" and group.world_size == 1 and self._compiled is None:
            use_bf16_gradients(network)
        self.loss_scale = LossScale(self._device, group.world_size) if precision == "float16" else None
        self._loss = Loss(recipe.train, train.targets, network.head.out_features, self._device)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer; a head that is fitted alone does not need it, and importing PyTorch's takes a second."""
        return build_optimizer(self.model.network, self.recipe.optimizer)

    def augmentation(self, epoch: int) -> Augment:
        """Return the augmentation settings of an epoch."""
        augment, scheduled = self.recipe.augment, epoch_settings(self.recipe.schedule, epoch)
        noise = augment.colour_noise if scheduled.colour_noise is None else scheduled.colour_noise
        return augment.model_copy(update={"colour_noise": noise})

    def batches(self, state: TrainingState) -> Iterator[Batch]:
        """Set the network to training mode, and yield the remaining batches of the current epoch."""
        self.model.network.train()
        for layer in frozen_layers(self.model.network, self.recipe.optimizer).values():
            layer.eval()  # a frozen norm keeps its statistics
        augment, data, bounds = self.recipe.augment, self.recipe.data, self.model.local_bounds(self.bounds)
        chance = self.recipe.train.seed, state.epoch, state.batch
        batches = epoch_batches(
            *(self.images, bounds, *chance, data.workers),
            together=augment.together,
            alternate=augment.alternating_flip,
            mixed=augment.mixes,
            pinned=self._device.type == "cuda",
        )
        return map(self.images.gather, batches) if isinstance(self.images, ResidentImages) else batches

    def set_lr(self, lr: float, epoch: int) -> None:
        """Set the learning rate of each layer: `lr` times its `lr_scale` in this epoch."""
        factors = epoch_settings(self.recipe.schedule, epoch).lr_scale
        set_lr(self.optimizer, lr, {**self.recipe.optimizer.lr_scale, **factors})

    def forward_backward(self, batch: Batch, augment: Augment, state: TrainingState, progress: float) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the current batch; return its mean loss and the number of correct predictions.

        They are tensors without dimensions on the device, with several processes this one's part. The random seed depends only
        on (seed, epoch, batch). `progress` is the fraction of the training that is done. If the device runs out of memory, the
        batch is split into smaller micro-batches.
        """
        start, end = self.bounds[state.batch]
        entropy = [self.recipe.train.seed, state.epoch, state.batch]
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1
        side = input_size_at(self.recipe, progress, self.model.full_model.smallest)
        preprocessing = self.preprocessing.model_copy(update={"input": side})
        self.model.batch_size = end - start
        while True:
            torch.manual_seed(seed)
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return self._accumulate(batch, augment, preprocessing, state.accumulation_steps)
            except RuntimeError as error:
                if self.model.group.world_size > 1 or not is_out_of_memory(error):
                    raise
            self._split_micro_batches(end - start, state)  # not in `except`: the exception holds the step's tensors

    def update(self) -> None:
        """Update the weights by the gradients."""
        if self.loss_scale is None:
            self.optimizer.step()
        else:
            self.loss_scale.step(self.optimizer)

    def _accumulate(self, batch: Batch, augment: Augment, preprocessing: Preprocessing, steps: int) -> tuple[Tensor, Tensor]:
        """Accumulate gradients over `steps` micro-batches; return this process's loss and correct predictions."""
        losses, correct, device = list[Tensor](), list[Tensor](), self._device
        batch_targets = self.model.targets(self._mixed_targets(batch, augment, preprocessing))
        [normalizer] = self.model.sum(self._loss.normalizer(batch_targets))
        for images, cpu_targets, draws in _micro_batches(batch, batch_targets, steps):
            targets = send(cpu_targets, device)
            x = send(images, device)
            frozen = self.images.layer if isinstance(self.images, FrozenOutputs) else None
            if frozen is None:
                x = training_input(x, draws, preprocessing, augment)
            with autocast(device, self.recipe.train.precision):
                if frozen is None:
                    compiled = self._compiled if steps == 1 else None  # the gradients of CUDA graphs cannot accumulate
                    logits = (compiled or self.model.forward)(x, preprocessing.scale_factor).float()
                else:
                    logits = self.model.full_model.run_layers(x, frozen, "fc8").float()
            loss = self._loss(logits, targets) * (self._loss.normalizer(cpu_targets) / normalizer)
            torch.autograd.backward(loss if self.loss_scale is None else self.loss_scale.scaled(loss))

            losses.append(loss.detach())
            correct.append((logits.detach().argmax(1) == (targets.argmax(1) if augment.mixes else targets)).sum())
        return torch.stack(losses).sum(), torch.stack(correct).sum()

    def _mixed_targets(self, batch: Batch, augment: Augment, preprocessing: Preprocessing) -> Tensor:
        """Return the targets of a batch, N int64, or N x classes float32 if its images are mixed."""
        if not augment.mixes:
            return batch.targets
        assert batch.draws is not None
        how = mixture(by_name(batch.draws[:-1]), augment, preprocessing.resized)
        return mix_targets(batch.targets, how, self._loss.classes)

    def _split_micro_batches(self, count: int, state: TrainingState) -> None:
        """Halve the micro-batches of a batch of `count` images, which did not fit into the device's memory."""
        size = -(-count // state.accumulation_steps)
        if size == 1:
            side = self.preprocessing.input_side
            raise RunError(f"the device's memory is too small for one image of {side}x{side} pixels: lower images.input")
        state.accumulation_steps *= 2
        self.optimizer.zero_grad(set_to_none=True)
        release_memory()
        change = f"gradients are accumulated over micro-batches of {-(-count // state.accumulation_steps)}"
        effect = "a step is still that of the whole batch, but batch normalisation sees fewer images"
        self._log(f"the device's memory is too small for {size} images at once: from here on, {change}; {effect}")


def _micro_batches(batch: Batch, targets: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Divide a batch with its `targets` into at most `steps` parts: images, targets, draws."""
    assert batch.draws is not None
    mixed = targets.is_floating_point()  # each with the next image, so that two parts share an image
    start = 0
    for part in targets.chunk(steps):
        rows = slice(start, start + len(part) + mixed) if steps > 1 else slice(None)
        yield batch.images[rows], part, batch.draws[rows]
        start += len(part)
