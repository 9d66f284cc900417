"""A dataset as a table: the name, class and split of each image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from alexnet.data.contents import Contents, stat_fact
from alexnet.data.labels import normalize_label

SPLITS = ("train", "val", "test")


def sample_by_class(targets: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the positions of `count` random images of as many classes as possible, ordered by class; always the same."""
    draw = np.random.default_rng(0).random(len(targets))
    order = np.lexsort((draw, targets))  # by class, in random order within each
    rank = np.arange(len(order)) - np.searchsorted(targets[order], targets[order])  # 0 for the first image of each class
    chosen: NDArray[np.int64] = order[np.lexsort((draw[order], rank))][:count]
    return chosen[np.argsort(targets[chosen], kind="stable")]


class Skipped(NamedTuple):
    """A file that was left out, and why."""

    image: str
    reason: str


class Row(NamedTuple):
    """An image with its label, and its split and group, which are empty if the source declares none."""

    image: str
    label: str
    split: str
    group: str = ""


@dataclass(frozen=True, eq=False)
class Table:
    """The images of a dataset, not decoded yet.

    Attributes:
        name: short name of the dataset, for messages and file names.
        labels: names of the classes, sorted; `targets` are positions in it.
        images: unique name of each image: the path relative to `root`, or such as `test/00012` for images in memory.
        targets: class of each image, int64.
        splits: `train`, `val` or `test` for each image; empty if the dataset declares none.
        root: the folder that `images` are relative to; None for images in memory.
        pixels: N H W C uint8, for images in memory.
        contents: bytes of image files by name, for images inside Parquet files or archives.
        groups: group of each image, empty for an image by itself; None if the dataset declares none.
        mirror: whether mirror images belong to the same class.
        skipped: files that were left out.
        unknown: images that show none of the classes, all labelled 0; None without any.
    """

    name: str
    labels: tuple[str, ...]
    images: Sequence[str]
    targets: NDArray[np.int64]
    splits: NDArray[np.str_]
    root: Path | None = None
    pixels: NDArray[np.uint8] | None = None
    contents: Contents | None = None
    groups: Sequence[str] | None = None
    mirror: bool = True
    skipped: tuple[Skipped, ...] = ()
    unknown: Self | None = None

    def __len__(self) -> int:
        return len(self.images)

    def source(self, index: int) -> Path | bytes | NDArray[np.uint8]:
        """Return image `index` as `decode.decode` takes it: a path, the bytes of a file, or H W C uint8 pixels."""
        if self.pixels is not None:
            return np.asarray(self.pixels[index])
        return self.file(index) if self.contents is None else self.contents[self.images[index]]

    def file(self, index: int) -> Path:
        """Return the file that contains image `index`, for images that are not in memory."""
        assert self.root is not None
        path: Path = self.root / self.images[index]
        return path if self.contents is None else self.contents.path(self.images[index])

    def fact(self, index: int) -> str:
        """Return what changes when image `index` does: sizes and times of change; images in memory have none.

        Raises:
            OSError: there is no such file.
        """
        if self.contents is not None:
            return self.contents.fact(self.images[index])
        return stat_fact(self.file(index).stat())

    def sources(self, step: int = 1) -> Iterator[Path | bytes | NDArray[np.uint8]]:
        """Yield every `step`-th image as `source` returns it."""
        return (self.source(index) for index in range(0, len(self), step))

    def select(self, rows: NDArray[np.int64], skipped: Sequence[Skipped] = ()) -> Self:
        """Return a table of `rows` only, in that order, with more files `skipped`."""
        return replace(
            self,
            images=[self.images[i] for i in rows],
            targets=self.targets[rows],
            splits=self.splits[rows],
            pixels=None if self.pixels is None else self.pixels[rows],
            groups=None if self.groups is None else [self.groups[i] for i in rows],
            skipped=(*self.skipped, *skipped),
        )

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return a table with `labels`, which must include its own (up to normalization), and targets to match."""
        normalized = [normalize_label(label) for label in labels]
        positions = [labels.index(x) if x in labels else normalized.index(normalize_label(x)) for x in self.labels]
        return replace(self, labels=labels, targets=np.array(positions, dtype=np.int64)[self.targets])

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the positions of the images of `split`."""
        return np.flatnonzero(self.splits == split)

    def counts(self) -> dict[str, int]:
        """Return the number of images of each split that is not empty."""
        return {split: n for split in SPLITS if (n := int((self.splits == split).sum()))}
