"""The loss and the correct predictions of each step, which stay on the device until several steps are read together.

Reading a number makes the program wait for the device, and the device then wait for the program.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from alexnet.training.parallel import ParallelModel


class Reading(NamedTuple):
    """What a step on `images` images came to: the mean loss, and the number of correct predictions."""

    images: int
    loss: float
    correct: float


class Readings:
    """The numbers of steps that are not read yet."""

    def __init__(self, model: ParallelModel) -> None:
        self._model = model
        self._steps = list[tuple[int, Tensor, Tensor]]()

    def add(self, images: int, loss: Tensor, correct: Tensor) -> None:
        """Add a step on `images` images; `loss` and `correct` are this process's part, tensors without dimensions."""
        self._steps.append((images, loss, correct))

    def read(self) -> list[Reading]:
        """Return the numbers of the steps since the last call, over all processes; every process calls it."""
        if not self._steps:
            return []
        images, losses, correct = zip(*self._steps, strict=True)
        self._steps.clear()
        numbers = torch.stack(losses).tolist() + torch.stack(correct).tolist()
        numbers = self._model.sum(*numbers)
        return [Reading(*each) for each in zip(images, numbers[: len(images)], numbers[len(images) :], strict=True)]
