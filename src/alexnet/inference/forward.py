"""The forward pass: a batch of images to logits, calibrated probabilities or activations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.data.augment import DRAWS, training_input
from alexnet.data.preprocessing import PixelArray, to_input
from alexnet.errors import AlexNetError
from alexnet.inference.metrics import log_probabilities
from alexnet.inference.views import average, views
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast, is_out_of_memory, release_memory, resolve_precision
from alexnet.network.known import Known
from alexnet.recipe import Augment, Preprocessing
from alexnet.run import ModelConfig

T = TypeVar("T")

MARGIN = 0.3  # between the two highest probabilities; below it, bfloat16 may change them by more than 0.01
KNOWN_MARGIN = 0.2  # from the threshold of `Known`; bfloat16 changes the sum of scores by less


@contextmanager
def inference(network: nn.Module) -> Iterator[torch.device]:
    """Set a network to evaluation mode, without gradients, and yield its device; restore the mode afterwards."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield device
    finally:
        network.train(was_training)


class Outputs(NamedTuple):
    """The outputs for a batch: logits, N x classes float32, and the scores of `Known`, N x 3 float32, without it N x 0."""

    logits: NDArray[np.float32]
    scores: NDArray[np.float32]


def compute(
    network: nn.Module,
    images: Tensor,
    preprocessing: Preprocessing,
    precision: str = "auto",
    view_count: int | None = None,
    known: Known | None = None,
) -> Outputs:
    """Return the outputs for a batch of images, N S S 3.

    `view_count` is `preprocessing.views` by default. With several views, logits are the logarithms of the mean probabilities,
    and scores are means. If the device runs out of memory, the batch is split.
    """

    def outputs(images: Tensor) -> Outputs:
        with inference(network) as device:
            logits, scores = [], []
            for x in views(images.to(device), preprocessing, view_count or preprocessing.view_count):
                with autocast(device, precision):
                    codes, result = _codes_and_logits(network, x, preprocessing.scale_factor, wanted=known is not None)
                logits.append(result.float())
                scores.append(result.new_empty((len(x), 0)).float() if known is None else known(codes, result))
            return Outputs(average(torch.stack(logits)).cpu().numpy(), torch.stack(scores).mean(0).cpu().numpy())

    parts = _split_if_out_of_memory(outputs, images)
    return Outputs(*map(np.concatenate, zip(*parts, strict=True)))


def _codes_and_logits(network: nn.Module, x: Tensor, upscale: int, *, wanted: bool) -> tuple[Tensor, Tensor]:
    """Return the output of the last hidden layer, if `wanted`, and the logits."""
    if not wanted:
        return x, network(x, upscale)
    assert isinstance(network, AlexNet)
    layer = network.layer_names[-2]
    logits, kept = network.activations(x, (layer,), upscale)
    return kept[layer], logits


def predict_logits(
    network: nn.Module, images: Tensor, preprocessing: Preprocessing, precision: str = "auto", view_count: int | None = None
) -> NDArray[np.float32]:
    """Return the logits of a batch, as `compute` does."""
    return compute(network, images, preprocessing, precision, view_count).logits


def classify(
    network: AlexNet, config: ModelConfig, images: list[PixelArray], view_count: int | None = None
) -> list[tuple[NDArray[np.float64], bool | None]]:
    """Return for each image S S 3 (`iter_images`) its calibrated probabilities, and whether it is known.

    An image is known if it shows one of the classes, as far as `Known` can tell; None if the run has no threshold. If the run
    computes in bfloat16 or float16, images whose two highest probabilities are close, or whose scores are close to the
    threshold, are computed again in float32; so are those whose numbers were too large for float16.
    """
    x, known = torch.from_numpy(np.stack(images)), config.known

    def answers(images: Tensor, precision: str) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        logits, scores = compute(network, images, config.preprocessing, precision, view_count, known)
        margins = np.full(len(logits), np.inf, np.float32) if known is None else known.margins_of(scores)
        return np.exp(log_probabilities(logits, config.temperature)), margins

    result, margins = answers(x, config.precision)
    second, first = np.partition(result, -2)[:, -2:].T
    close = ~(first - second >= MARGIN) | ~(np.abs(margins) >= KNOWN_MARGIN)  # NaN too
    if close.any() and resolve_precision(network.head.weight.device, config.precision) != "float32":
        result[close], margins[close] = answers(x[torch.from_numpy(close)], "float32")
    return [(row, None if known is None else bool(margin >= 0)) for row, margin in zip(result, margins, strict=True)]


def layer_outputs(
    network: AlexNet, images: Tensor, preprocessing: Preprocessing, layer: str, precision: str, *, mirrored: bool = False
) -> Tensor:
    """Return the outputs of a layer for a batch N S S 3, in main memory: maps N C H W or vectors N units.

    They are float32, or what the network computes in. `mirrored`: of the mirror images, as training flips them.
    """
    flip = Augment(horizontal_flip=mirrored)

    def outputs(images: Tensor) -> Tensor:
        with inference(network) as device:
            x = training_input(images.to(device), torch.zeros(len(images), len(DRAWS)), preprocessing, flip)
            with autocast(device, precision):
                return network.run_layers(x, None, layer, preprocessing.scale_factor).cpu()

    return torch.cat(_split_if_out_of_memory(outputs, images))


def activations(
    network: AlexNet, images: Tensor, preprocessing: Preprocessing, layers: Sequence[str], precision: str
) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of `layers` for a batch N S S 3: feature maps N C H W or vectors N units, float32."""
    with inference(network) as device:
        x = to_input(images.to(device), preprocessing)
        with autocast(device, precision):
            _, outputs = network.activations(x, layers, preprocessing.scale_factor)
        return {name: outputs[name].float().cpu().contiguous().numpy() for name in layers}


def _split_if_out_of_memory(compute: Callable[[Tensor], T], images: Tensor) -> list[T]:
    """Compute a batch as a whole, or in parts that fit into the device's memory."""
    try:
        return [compute(images)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(images) < 2:
            raise AlexNetError("the device's memory is too small for one image: use --device cpu") from error
    release_memory()  # not in `except`: the exception holds the tensors
    return [part for half in images.chunk(2) for part in _split_if_out_of_memory(compute, half)]
