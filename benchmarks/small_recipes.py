"""How the networks of `small_networks` are trained from nothing, as published, but by the clock; `neighbour` measures them.

`SpeedRecord` follows Jordan 2024 (arXiv 2404.00498), and `ResNet18` FFCV (Leclerc and others 2023, arXiv 2306.12517; its
configuration of 16 epochs). Lengths in epochs became fractions of the training, as the clock decides how many epochs there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from benchmarks.small_networks import resnet18, speed_record, whiten
from torch import Tensor, nn
from torch.nn.functional import pad

from alexnet.data.augment import training_input
from alexnet.recipe import Augment, Preprocessing


class Neighbour:
    """A network with its optimizer, augmentation, schedule and views at test time.

    Attributes:
        stored: side of the stored images, in pixels.
        batch: images per step.
        momentum: of the SGD with Nesterov's momentum.
        smoothing: of the labels.
        schedule: fractions of the training, and the learning rate at each, relative to its peak; linear in between.
        alternating_flip: whether images are mirrored every other epoch, rather than at random.
    """

    name: ClassVar[str]
    stored: ClassVar[int]
    batch: ClassVar[int]
    momentum: ClassVar[float]
    smoothing: ClassVar[float]
    schedule: ClassVar[tuple[Sequence[float], Sequence[float]]]
    alternating_flip: ClassVar[bool]

    def __init__(self, network: nn.Module, groups: list[dict[str, Any]]) -> None:
        """`groups` are the optimizer's: parameters, with the peak of the learning rate and the weight decay."""
        self.network = network
        self.optimizer = torch.optim.SGD(groups, momentum=self.momentum, nesterov=True)
        self._peaks = [group["lr"] for group in groups]

    def inputs(self, images: Tensor, draws: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Augment images, N S S 3 uint8 -> N 3 I I float32, by the uniform numbers `draws`, N x len(`DRAWS`)."""
        raise NotImplementedError

    def views(self, x: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Yield the weight of each view of test images, and the view, N 3 I I; the image as it is comes first."""
        raise NotImplementedError

    def before_step(self, progress: float) -> None:
        """Set the learning rate; `progress` is the fraction of the training that is done."""
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * float(np.interp(progress, *self.schedule))

    def after_step(self, progress: float) -> None:
        """Do what follows a step."""

    def end_epoch(self) -> None:
        """Do what follows an epoch, also one that the clock cut short."""


class SpeedRecord(Neighbour):
    """airbench94: whitened patches, three blocks of two convolutions, and slow weights (lookahead)."""

    name, stored, batch, momentum, smoothing = "airbench94", 32, 1024, 0.85, 0.2
    schedule, alternating_flip = ([0, 0.23, 1], [0.2, 1, 0.07]), True
    lr, weight_decay, bias_factor = 11.5, 0.0153, 64  # for 1,024 images, and independent of momentum and of each other
    early = 3 / 9.9  # of the training: until then the bias of the whitening is trained, from then on there are slow weights
    every, keep = 5, 0.95  # steps between two updates of the slow weights, and how much of them each step keeps at most

    def __init__(self, classes: int, images: Tensor, batch: int) -> None:
        """`images`, N 3 32 32 preprocessed, set the whitening; `batch` is the number of images per step."""
        network = speed_record(classes)
        whiten(network.whiten, images)
        biases = [value for name, value in network.named_parameters() if "norm" in name and value.requires_grad]
        others = [value for name, value in network.named_parameters() if "norm" not in name and value.requires_grad]
        lr = self.lr * batch / 1024 / (1 + 1 / (1 - self.momentum))  # Nesterov's momentum multiplies steps by the last factor
        decay = self.weight_decay / self.lr
        bias_group = {"params": biases, "lr": lr * self.bias_factor, "weight_decay": decay / self.bias_factor}
        super().__init__(network, [bias_group, {"params": others, "lr": lr, "weight_decay": decay}])
        self._slow: list[Tensor] = []
        self._steps = 0

    def inputs(self, images: Tensor, draws: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Shift by up to 2 pixels, with reflected borders, and mirror."""
        return training_input(images, draws, preprocessing, Augment(shift=2 / 32, horizontal_flip=True))

    def views(self, x: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Yield the image, and the image shifted by a pixel along the diagonal either way, each mirrored too."""
        wide = pad(x, (1, 1, 1, 1), "reflect")
        for weight, view in ((1 / 4, x), (1 / 8, wide[:, :, :-2, :-2]), (1 / 8, wide[:, :, 2:, 2:])):
            yield weight, view
            yield weight, view.flip(3)

    def before_step(self, progress: float) -> None:
        """Set the learning rate, and freeze the bias of the whitening in time."""
        super().before_step(progress)
        self.network.whiten.bias.requires_grad_(progress < self.early)

    def after_step(self, progress: float) -> None:
        """Update the slow weights, which the network then goes on from."""
        self._steps += 1
        if progress >= self.early and self._steps % self.every == 0:
            if self._slow:
                self._look_ahead(self.keep**self.every * progress**3)
            else:
                self._slow = [value.clone() for value in self._fast()]

    def end_epoch(self) -> None:
        """Return to the slow weights."""
        if self._slow:
            self._look_ahead(1.0)

    def _fast(self) -> list[Tensor]:
        return [value for value in self.network.state_dict().values() if value.is_floating_point()]

    def _look_ahead(self, keep: float) -> None:
        for slow, fast in zip(self._slow, self._fast(), strict=True):
            fast.copy_(slow.lerp_(fast, 1 - keep))


class ResNet18(Neighbour):
    """ResNet-18 on random crops of 128 pixels, tested on the whole image of 160 (Touvron and others 2019) and its mirror."""

    name, stored, batch, momentum, smoothing = "resnet18", 160, 64, 0.9, 0.1
    schedule, alternating_flip = ([0, 2 / 16, 1], [1e-4, 1, 0]), False
    lr, weight_decay, side = 0.5, 5e-5, 128  # the learning rate of 1,024 images
    smallest = 0.35  # part of the image in a crop, as in fastai's examples for Imagenette

    def __init__(self, classes: int, images: Tensor, batch: int) -> None:
        """`images` are not needed; `batch` is the number of images per step."""
        network = resnet18(classes)
        weights = [value for value in network.parameters() if value.ndim > 1]
        others = [value for value in network.parameters() if value.ndim == 1]
        lr = self.lr * batch / 1024
        decayed = {"params": weights, "lr": lr, "weight_decay": self.weight_decay}
        super().__init__(network, [decayed, {"params": others, "lr": lr, "weight_decay": 0.0}])

    def inputs(self, images: Tensor, draws: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Crop at random, scale to 128 pixels, and mirror half of the images."""
        at_side = preprocessing.model_copy(update={"input": self.side})
        return training_input(images, draws, at_side, Augment(area=(self.smallest, 1.0), horizontal_flip=True))

    def views(self, x: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Yield the image and its mirror image."""
        yield 1 / 2, x
        yield 1 / 2, x.flip(3)
