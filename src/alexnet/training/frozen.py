"""The outputs of frozen layers, computed once for a whole training where its augmentation allows that.

Without random crops and the like, an image has two inputs: itself and its mirror image. The outputs of the last frozen layer
for both are kept in memory, and each epoch starts from them. Every session computes them in the same order, so that a resumed
training is bit-identical.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.data.augment import DRAWS
from alexnet.data.batches import Batch, ordered_batches
from alexnet.data.dataset import Dataset
from alexnet.head.codes import image_codes
from alexnet.inference.forward import Outputs, inference, layer_outputs
from alexnet.inference.views import average
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast
from alexnet.network.known import Known
from alexnet.progress import track
from alexnet.recipe import Augment, Preprocessing, Recipe
from alexnet.training.optimizer import frozen_layers

BATCH = 128  # images at a time
MEMORY_SHARE = 0.25  # of all memory, not of what is free: a resumed training has to make the same choice
FLIP = DRAWS.index("horizontal_flip")
# The augmentation that an image and its mirror image cover.
WITHOUT_EFFECT = {"alternating_flip", "together", "aspect", "colour_axes", "colour_shrink"}  # on their own
FLIPS_ALONE = Augment().model_dump(exclude={"horizontal_flip", *WITHOUT_EFFECT})


@dataclass(frozen=True, eq=False)
class FrozenOutputs:
    """The outputs of `layer`, the last frozen one, for the images of a split, N C H W or N units, with their `targets`.

    `mirrored` are those of the mirror images, if training flips images or they count in validation, as a second of the `views`.
    """

    layer: str
    outputs: Tensor
    mirrored: Tensor | None
    targets: NDArray[np.int64]
    views: int = 1

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, order: NDArray[np.int64], draws: NDArray[np.float32] | None = None) -> Batch:
        """Return the outputs for the images at the positions `order` as a batch, mirrored where `draws` flip the image."""
        x, rows = self.outputs[order], torch.from_numpy(order)
        if draws is not None and self.mirrored is not None:
            flipped = torch.from_numpy(draws[:, FLIP] < 0.5)
            x[flipped] = self.mirrored[rows[flipped]]
        return Batch(x, torch.from_numpy(self.targets[order]), None if draws is None else torch.from_numpy(draws))

    def compute(self, network: AlexNet, precision: str, known: Known | None = None) -> Outputs:
        """Return the network's outputs for the images, as `forward.compute` does."""
        parts, last = [], network.layer_names[-2]
        kept = [self.outputs] if self.views == 1 or self.mirrored is None else [self.outputs, self.mirrored]
        for each in zip(*(torch.split(outputs, BATCH) for outputs in kept), strict=True):
            logits, scores = [], []
            with inference(network) as device:
                for x in each:
                    with autocast(device, precision):
                        codes = network.run_layers(x.to(device), self.layer, last)
                        result = network.run_layers(codes, last, "fc8").float()
                    logits.append(result)
                    scores.append(result.new_empty((len(x), 0)) if known is None else known(codes, result))  # in float32
                parts.append((average(torch.stack(logits)).cpu().numpy(), torch.stack(scores).mean(0).cpu().numpy()))
        return Outputs(*map(np.concatenate, zip(*parts, strict=True)))

    def codes(self, network: AlexNet, precision: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the outputs of the last hidden layer for some of the images, N units float32."""
        with inference(network) as device, autocast(device, precision):
            x = self.outputs[rows].to(device)
            return network.run_layers(x, self.layer, network.layer_names[-2]).float().cpu().numpy()


def keep_frozen_outputs(
    recipe: Recipe,
    network: AlexNet,
    dataset: Dataset,
    preprocessing: Preprocessing,
    before_batch: Callable[[], object],
    log: Callable[[str], object],
) -> dict[str, FrozenOutputs]:
    """Return the outputs of the last frozen layer by split; none if no layer is frozen, or if they have to be computed anew.

    `before_batch` is called before each batch, and may raise an error to stop. `log` takes a message to the user.
    """
    layer = next(reversed(frozen_layers(network, recipe.optimizer)), None)
    if layer is None:
        return {}
    if reason := _changing(recipe):
        log(f"frozen layers up to {layer} are computed in every epoch, as {reason} changes their input")
        return {}
    flips, views = recipe.augment.horizontal_flip is True, preprocessing.view_count
    mirrored = {"train": flips or views == 2, "val": views == 2, "test": views == 2}
    if layer == network.layer_names[-2]:
        codes = image_codes(network, dataset, preprocessing, recipe.train.precision, mirror=mirrored["train"])
        result = {}
        for split in dataset.table.counts():
            both = torch.from_numpy(codes.take(dataset.table.rows(split))).unbind(1)
            kept = both[1] if mirrored[split] else None
            result[split] = FrozenOutputs(layer, both[0], kept, dataset.images(split).targets, views)
        return result

    def outputs(split: str, *, flipped: bool) -> Iterator[Tensor]:
        images = dataset.images(split)
        what = f"Computing {layer} ({split}{', mirrored' if flipped else ''})"
        for batch in track(ordered_batches(images, BATCH, recipe.data.workers), what, -(-len(images) // BATCH)):
            before_batch()
            yield layer_outputs(network, batch.images, preprocessing, layer, recipe.train.precision, mirrored=flipped)

    train, val = dataset.images("train"), dataset.images("val")
    one = layer_outputs(network, train.take(np.arange(1)).images, preprocessing, layer, recipe.train.precision)
    needed = one.nbytes * (len(train) * (1 + mirrored["train"]) + len(val) * (1 + mirrored["val"]))
    allowed = psutil.virtual_memory().total * MEMORY_SHARE
    if needed > allowed:
        needs = f"their outputs take {needed / 1e9:.1f} GB, more than a quarter of the memory"
        log(f"frozen layers up to {layer} are computed in every epoch: {needs}")
        return {}
    log(f"frozen layers up to {layer} are computed once: their outputs take {needed / 1e9:.2f} GB")
    return {
        split: FrozenOutputs(
            layer,
            torch.cat(list(outputs(split, flipped=False))),
            torch.cat(list(outputs(split, flipped=True))) if mirrored[split] else None,
            images.targets,
            views,
        )
        for split, images in (("train", train), ("val", val))
    }


def _changing(recipe: Recipe) -> str:
    """Return the recipe's key that gives frozen layers other inputs than an image and its mirror image; "" if there is none."""
    for name, plain in FLIPS_ALONE.items():
        if getattr(recipe.augment, name) != plain:
            return f"augment.{name}"
    if recipe.images.views == 10:
        return "images.views"
    if any(row.colour_noise for row in recipe.schedule.table):
        return "schedule.table's colour_noise"
    return "schedule.progressive_resize" if recipe.schedule.progressive_resize else ""
