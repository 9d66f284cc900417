"""Decoded images, from which batches are taken."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alexnet.data.preprocessing import PixelArray, fit_image
from alexnet.recipe import Preprocessing


class DecodedImages(Protocol):
    """The images of a dataset, decoded before or whenever they are taken, uint8."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are decoded, and fitted for batches."""

    @property
    def shapes(self) -> NDArray[np.int64]:
        """The height and width of each image, or of all, N x 2 or 1 x 2."""

    def __len__(self) -> int: ...

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return one image, H W 3."""

    def take(self, rows: NDArray[np.int64]) -> PixelArray:
        """Return images for a batch: N S S 3, S = `side`, uint8, or float32 if full images are resized."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images, uint8, stored contiguously in `memory`; `shapes` holds their heights and widths, N x 2 int64."""

    memory: NDArray[np.uint8]
    shapes: NDArray[np.int64]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.shapes)

    @cached_property
    def starts(self) -> list[int]:
        """The offset of each image in `memory`, and the end of the last."""
        return [0, *np.cumsum(self.shapes.prod(1) * 3).tolist()]

    @cached_property
    def sizes(self) -> list[list[int]]:
        """The height and width of each image."""
        result: list[list[int]] = self.shapes.tolist()
        return result

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return one image, H W 3."""
        start, end, (height, width) = self.starts[row], self.starts[row + 1], self.sizes[row]
        return self.memory[start:end].reshape(height, width, 3)

    def take(self, rows: NDArray[np.int64]) -> PixelArray:
        """Return images for a batch: N S S 3, S = `side`, uint8, or float32 if full images are resized."""
        if self.preprocessing.cache_size == "full":
            return gather((self.image(row) for row in rows.tolist()), self.preprocessing)
        side = self.preprocessing.side
        return self.memory.reshape(-1, side, side, 3)[rows]


def gather(images: Iterable[NDArray[np.uint8]], preprocessing: Preprocessing) -> PixelArray:
    """Return decoded images as a batch: N S S 3, S = `side`, uint8, or float32 if full images are resized."""
    if preprocessing.cache_size == "full":
        return np.stack([fit_image(image, preprocessing) for image in images], dtype=np.float32)
    side, decoded = preprocessing.side, [*images]
    batch = np.empty((len(decoded), side, side, 3), np.uint8)
    for place, image in zip(batch, decoded, strict=True):  # faster than np.stack
        place[:] = image
    return batch
