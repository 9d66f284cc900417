"""An exponential average of the weights over the steps of a training (`train.average`), and of batch norm's statistics."""

import math

import torch
from torch import Tensor, nn

from alexnet.network.alexnet import AlexNet
from alexnet.training.parallel import ParallelModel


class WeightAverage:
    """The average of the weights after each step, in which older weights count less: by exp(-age / `horizon`).

    The age of weights is the part of the whole training that came after them. The initial weights do not count. The moving
    statistics of batch norms are averaged likewise; frozen weights are left alone.

    Attributes:
        network: the averaged network, complete once `gather` is called; every process has it.
    """

    def __init__(self, model: ParallelModel, network: AlexNet, horizon: float) -> None:
        """`network` is one like `model.full_model` on the meta device, to be filled with its weights."""
        self.network, self._model, self._horizon = network, model, horizon
        network.load_state_dict({name: tensor.clone() for name, tensor in model.full_model.state_dict().items()}, assign=True)
        trained = model.network.state_dict(keep_vars=True)
        sharded = model.network is not model.full_model
        kept = {name: tensor.detach().clone() for name, tensor in trained.items()} if sharded else network.state_dict()
        self._averages = kept  # by name; this process's part of each
        names = [name for name, tensor in trained.items() if tensor.requires_grad or not isinstance(tensor, nn.Parameter)]
        pairs = [(kept[name], trained[name].detach()) for name in names]
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]  # and what each is the average of
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, progress: float, steps: int) -> None:
        """Include the weights after a step; before it, `steps` were done, and the fraction `progress` of the training."""
        averages, weights = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(averages, weights, share_of_newest(self._horizon, progress, steps))
        for counter, newest in self._counters:
            counter.copy_(newest)

    def gather(self) -> None:
        """Complete `network` with the averages of all processes; every process calls it."""
        self._model.gather(self._averages, self.network)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from the state of `network` in a checkpoint."""
        self.network.load_state_dict(tensors)
        self._model.scatter(self.network, self._averages)


def share_of_newest(horizon: float, progress: float, steps: int) -> float:
    """Return the share of the newest weights in their average with those after `steps` earlier steps.

    If a step is the fraction x of the horizon, weights of age n steps count exp(-n x). The newest then have the share
    (1 - exp(-x)) / (1 - exp(-x (steps + 1))): 1 after the first step, which removes the initial weights; about 1 / n within
    the first horizon, a plain mean; and 1 - exp(-x) later.
    """
    # x is the mean over all steps. By the clock, a single one may include a validation, which would make older weights vanish.
    x = progress / steps / horizon if steps else 0.0
    return math.expm1(-x) / math.expm1(-x * (steps + 1)) if x else 1 / (steps + 1)
