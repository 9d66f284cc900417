"""Images that are decoded whenever they are taken, for datasets that do not fit onto the disk decoded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode_pool import decode_one
from alexnet.data.parquet import Images
from alexnet.data.pixels import gather
from alexnet.data.preprocessing import PixelArray
from alexnet.data.table import Table
from alexnet.errors import DataError, ImageError, truncate
from alexnet.recipe import Preprocessing


@dataclass(frozen=True, eq=False)
class OnDemand:
    """The images of a table, with the pixels that a cache would have.

    Images are decoded by separate processes, one for each thread that takes some.
    """

    table: Table
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.table)

    @property
    def shapes(self) -> NDArray[np.int64]:
        """The height and width of images as the cache would store them, 1 x 2."""
        return np.full((1, 2), self.preprocessing.side)

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return one image, H W 3.

        Raises:
            DataError: it cannot be read.
        """
        answer = decode_one("pixels", self.table.source(row), self.preprocessing.decode_options())
        if isinstance(answer, ImageError):
            name = truncate(self.table.images[row])
            advice = "remove it, or pack the others with alexnet data shard"
            raise DataError(f"{self.table.name}: {name} cannot be read: {answer}; {advice}")
        return answer.pixels

    def take(self, rows: NDArray[np.int64]) -> PixelArray:
        """Return images for a batch: N S S 3, S = `side`, uint8, or float32 if full images are resized."""
        return gather((self.image(row) for row in rows.tolist()), self.preprocessing)


def decode_on_demand(table: Table, preprocessing: Preprocessing, prints: Sequence[str]) -> tuple[OnDemand, str]:
    """Return the images of a table, and a hash of their files' names, sizes and times of change: their fingerprints `prints`.

    Raises:
        DataError: they are in Parquet files, which are read in order alone.
    """
    if table.contents is not None and any(isinstance(file, Images) for file, _ in table.contents.places.values()):
        advice = "make shards of them with alexnet data shard, and train on those"
        raise DataError(f"{table.name}: images in Parquet files can only be read in order: {advice}")
    return OnDemand(table, preprocessing), hashlib.sha256("".join(prints).encode()).hexdigest()
