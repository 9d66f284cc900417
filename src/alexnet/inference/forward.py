"""The forward pass: a batch of images to logits, calibrated probabilities or activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.data.preprocessing import PixelArray, to_input
from alexnet.errors import AlexNetError
from alexnet.inference.metrics import log_probabilities
from alexnet.inference.views import views
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast, is_out_of_memory, release_memory, resolve_precision
from alexnet.recipe import Preprocessing
from alexnet.run import ModelConfig

LEAD = 0.3  # in probability: where the first label leads the second by less, bfloat16 may be off by more than 0.01


@contextmanager
def inference(network: nn.Module) -> Iterator[torch.device]:
    """Put a network into evaluation mode, without gradients, and yield its device; the mode is restored."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield device
    finally:
        network.train(was_training)


def predict_logits(
    network: nn.Module, images: Tensor, preprocessing: Preprocessing, precision: str = "auto", view_count: int = 1
) -> NDArray[np.float32]:
    """Return the logits of a batch, N S S 3 -> N x classes float32.

    With several views the logits are the logarithms of the mean probabilities. What is too much for the device's memory is
    computed in halves.

    Raises:
        AlexNetError: one image alone is too much.
    """

    def logits(images: Tensor) -> NDArray[np.float32]:
        with inference(network) as device:
            outputs = []
            for x in views(images.to(device), preprocessing, view_count):
                with autocast(device, precision):
                    outputs.append(network(x, preprocessing.scale_factor).float())
            # In logarithms throughout: a probability that rounds to 0 would have an infinite loss.
            one = outputs[0] if view_count == 1 else torch.stack(outputs).log_softmax(2).logsumexp(0) - math.log(view_count)
            result: NDArray[np.float32] = one.cpu().numpy()
        return result

    return np.concatenate(_in_halves(logits, images))


def probabilities(network: AlexNet, config: ModelConfig, images: list[PixelArray]) -> NDArray[np.float64]:
    """Return N x classes float64, calibrated with the run's temperature, of images S S 3 as `iter_images` yields them.

    Where the run computes in bfloat16, images whose answer is close are computed again in float32.
    """
    x = torch.from_numpy(np.stack(images))

    def calibrated(images: Tensor, precision: str) -> NDArray[np.float64]:
        logits = predict_logits(network, images, config.preprocessing, precision)
        return np.exp(log_probabilities(logits, config.temperature))

    result = calibrated(x, config.precision)
    second, first = np.partition(result, -2)[:, -2:].T
    close = first - second < LEAD
    if close.any() and resolve_precision(network.head.weight.device, config.precision) == "bfloat16":
        result[close] = calibrated(x[torch.from_numpy(close)], "float32")
    return result


def activations(
    network: AlexNet, images: Tensor, preprocessing: Preprocessing, layers: Sequence[str], precision: str
) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of `layers` for a batch N S S 3: maps N C H W or vectors N units, float32.

    Raises:
        VariantError: no such layer.
    """
    with inference(network) as device:
        x = to_input(images.to(device), preprocessing)
        with autocast(device, precision):
            _, kept = network.activations(x, layers, preprocessing.scale_factor)
        return {name: kept[name].float().cpu().contiguous().numpy() for name in layers}


def _in_halves(compute: Callable[[Tensor], NDArray[np.float32]], images: Tensor) -> list[NDArray[np.float32]]:
    """Compute a batch, in parts that fit into the device's memory."""
    try:
        return [compute(images)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(images) < 2:
            raise AlexNetError("the device's memory is too small for one image: --device cpu") from error
    release_memory()  # here, where the exception no longer holds on to the tensors
    return [part for half in images.chunk(2) for part in _in_halves(compute, half)]
