"""A dataset as a table: for each image its name, its class and its split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.data.labels import normalize_label
from alexnet.data.parquet import Contents

SPLITS = ("train", "val", "test")


class Skipped(NamedTuple):
    """A file that was left out, and why."""

    image: str
    reason: str


class Row(NamedTuple):
    """An image as a source names it; `split` is empty where the source does not say."""

    image: str
    label: str
    split: str


@dataclass(frozen=True, eq=False)
class Table:
    """The images of a dataset, before any of them is decoded.

    Attributes:
        name: of the dataset, short, for messages and file names.
        labels: names of the classes, sorted; `targets` are positions in it.
        images: a name for each image, unique: the path relative to `root`, or `test/00012` for images kept in memory.
        targets: int64, one an image.
        splits: `train`, `val` or `test` for each image; empty where the dataset does not say.
        root: the folder that `images` are relative to; None for images kept in memory.
        pixels: N H W C uint8, for images kept in memory.
        contents: files of images by name, for images that lie in a Parquet file.
        mirror: whether an image and its mirror image belong to the same class.
        skipped: files that were left out.
    """

    name: str
    labels: tuple[str, ...]
    images: Sequence[str]
    targets: NDArray[np.int64]
    splits: NDArray[np.str_]
    root: Path | None = None
    pixels: NDArray[np.uint8] | None = None
    contents: Contents | None = None
    mirror: bool = True
    skipped: tuple[Skipped, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.images)

    def source(self, index: int) -> Path | bytes | NDArray[np.uint8]:
        """Return image `index` as `decode.decode` takes it: a path, a file's bytes, or H W C uint8 pixels."""
        if self.pixels is not None:
            pixels: NDArray[np.uint8] = self.pixels[index]
            return pixels
        return self.file(index) if self.contents is None else self.contents[self.images[index]]

    def file(self, index: int) -> Path:
        """Return the file that image `index` is in, where images are not kept in memory."""
        assert self.root is not None
        path: Path = self.root / self.images[index]
        return path if self.contents is None else self.contents.path

    def sources(self, step: int = 1) -> Iterator[Path | bytes | NDArray[np.uint8]]:
        """Return all images, or each `step`-th, one after the other as `source` does."""
        return (self.source(index) for index in range(0, len(self), step))

    def select(self, rows: NDArray[np.int64], skipped: Sequence[Skipped] = ()) -> Table:
        """Return the table of `rows` alone, in that order, with more files `skipped`."""
        return replace(
            self,
            images=[self.images[i] for i in rows],
            targets=self.targets[rows],
            splits=self.splits[rows],
            pixels=None if self.pixels is None else self.pixels[rows],
            skipped=(*self.skipped, *skipped),
        )

    def relabelled(self, labels: tuple[str, ...]) -> Table:
        """Return the table with `labels`, of which its own are a part (but for spelling), and targets as positions in them."""
        tidy = [normalize_label(label) for label in labels]
        result = [labels.index(label) if label in labels else tidy.index(normalize_label(label)) for label in self.labels]
        position = np.array(result, dtype=np.int64)
        return replace(self, labels=labels, targets=position[self.targets])

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the positions of the images of `split`."""
        return np.flatnonzero(self.splits == split)

    def counts(self) -> dict[str, int]:
        """Return the number of images of each split that has some."""
        return {split: n for split in SPLITS if (n := int((self.splits == split).sum()))}
