"""Training images in the memory of the device, where they fit: a batch is gathered there, and only its rows are sent.

The batches are the same to the byte, so a training may be resumed on a device that holds the images or on one that does not.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.data.batches import Batch, SplitImages
from alexnet.network.device import free_memory, send

SHARE = 0.25  # of the device's free memory; activations need the rest
CHUNK = 1 << 28  # bytes to send at a time


@dataclass(frozen=True, eq=False)
class ResidentImages:
    """The images of a split, N S S 3 uint8 on the device, and their `targets`."""

    pixels: Tensor
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, order: NDArray[np.int64], draws: NDArray[np.float32] | None = None) -> Batch:
        """Return a batch whose images are their positions, `order`: `gather` fetches them."""
        targets = torch.from_numpy(self.targets[order])
        return Batch(torch.from_numpy(order), targets, None if draws is None else torch.from_numpy(draws))

    def gather(self, batch: Batch) -> Batch:
        """Return a batch with its images on the device."""
        positions = send(batch.images, self.pixels.device)
        return replace(batch, images=self.pixels.index_select(0, positions))


def hold(images: SplitImages, device: torch.device) -> SplitImages | ResidentImages:
    """Send the images to the device if they fit into `SHARE` of its free memory; else return them as they are."""
    size, side = images.pixels.preprocessing.cache_size, images.pixels.preprocessing.side
    needed = len(images) * side * side * 3
    if size == "full" or needed > SHARE * free_memory(device):  # full images are resized for each batch
        return images
    pixels = torch.empty((len(images), side, side, 3), dtype=torch.uint8, device=device)
    step = max(1, CHUNK // (side * side * 3))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        pixels[part] = torch.from_numpy(images.pixels.take(images.rows[part]))
    return ResidentImages(pixels, images.targets)
